"""Count the files, functions and types that one image request passes through.

    .venv/bin/python -m benchmarks.request_path [--list]

Serves the shipped image bundle over HTTP in this process, with a budget so small that every image
leaves at exit 0, and traces every Python call of every thread during one request. Reported is the
smallest of several requests, so that a heartbeat that falls into one does not count. JSON on the
last line.
"""

import http.client
import json
import sysconfig
import threading
import time
from types import FrameType
from typing import Any, NamedTuple

import uvicorn

from benchmarks.harness import IMAGE_BUNDLE, REPO, make_parser, print_report
from server.app import create_app
from server.http_protocol import HttpProtocol
from server.settings import Settings, load_settings

PACKAGES = ("models", "profiling", "scheduler", "server")
IMAGE = REPO / "docs/images/ship.jpg"
BUDGET_MS = 0.001
REQUESTS, SMOKE_REQUESTS = 20, 2  # of warm-up, and as many that are traced


class RequestPath(NamedTuple):
    """The files and functions (file, name) that one request enters, and the types it makes."""

    files: frozenset[str]
    functions: frozenset[tuple[str, str]]
    types: frozenset[str]


class CallTracer:
    """Records the calls into this project's packages while it is enabled; a profile function."""

    def __init__(self) -> None:
        self.enabled = False
        self._root = f"{REPO}/"
        self._outside = (sysconfig.get_paths()["purelib"], f"{REPO}/benchmarks")
        self._functions: set[tuple[str, str]] = set()
        self._types: set[str] = set()

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        """Note a call; `sys.setprofile` calls this for every event of a thread."""
        if event != "call" or not self.enabled:
            return
        code = frame.f_code
        name, path = code.co_name, code.co_filename
        if path.startswith(self._root) and not path.startswith(self._outside):
            if not name.startswith("<"):  # comprehensions are part of their function
                self._functions.add((path.removeprefix(self._root), code.co_qualname))
        if name in ("__init__", "__new__", "<lambda>"):
            self._note_type(frame)

    def _note_type(self, frame: FrameType) -> None:
        first = next(iter(frame.f_locals.values()), None)
        kind = first if isinstance(first, type) else type(first)
        if frame.f_code.co_name == "<lambda>" and not isinstance(first, type):
            return  # NamedTuples are made by a lambda whose first argument is the class
        if kind.__module__.partition(".")[0] in PACKAGES:
            self._types.add(f"{kind.__module__}.{kind.__qualname__}")

    def take(self) -> RequestPath:
        """Return what was recorded since the last time, and forget it."""
        functions, self._functions = frozenset(self._functions), set()
        types, self._types = frozenset(self._types), set()
        return RequestPath(frozenset(path for path, _ in functions), functions, types)


def trace_requests(settings: Settings, image: bytes, count: int) -> RequestPath:
    """Serve, send requests one at a time, and return the shortest path of one."""
    tracer = CallTracer()
    threading.setprofile(tracer)  # of every thread that starts from here on
    server = _server(settings)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.05)
        port = server.servers[0].sockets[0].getsockname()[1]
        connection = http.client.HTTPConnection("127.0.0.1", port)
        for _ in range(count):
            _exit_of(connection, image)
        paths = []
        for _ in range(count):
            tracer.take()
            tracer.enabled = True
            exit_taken = _exit_of(connection, image)
            time.sleep(0.02)  # what follows the answer belongs to the request too
            tracer.enabled = False
            assert exit_taken == 0, "a budget that nothing fits in makes every image leave at 0"
            paths.append(tracer.take())
        connection.close()
    finally:
        threading.setprofile(None)
        server.should_exit = True
        thread.join()
    return min(paths, key=lambda path: len(path.functions))


def _server(settings: Settings) -> uvicorn.Server:
    return uvicorn.Server(
        uvicorn.Config(
            create_app(settings),
            port=0,
            http=HttpProtocol,
            ws="none",
            log_config=None,
            access_log=False,
        )
    )


def _exit_of(connection: http.client.HTTPConnection, image: bytes) -> int:
    connection.request("POST", "/predict", image, {"Content-Type": "image/jpeg"})
    exit_taken: int = json.loads(connection.getresponse().read())["exit"]
    return exit_taken


def main() -> None:
    """Print the counts, and with --list every file, function and type."""
    parser = make_parser(__doc__)
    parser.add_argument("--list", action="store_true", help="print every file, function and type")
    args = parser.parse_args()
    settings = load_settings({"bundle": (IMAGE_BUNDLE,), "budget_ms": BUDGET_MS}, None, {})
    count = SMOKE_REQUESTS if args.smoke else REQUESTS
    path = trace_requests(settings, IMAGE.read_bytes(), count)
    if args.list:
        for file in sorted(path.files):
            names = sorted(name for where, name in path.functions if where == file)
            print(f"{file}: {', '.join(names)}")
        print(f"types: {', '.join(sorted(path.types))}")
    counts = {name: len(found) for name, found in path._asdict().items()}
    print_report(counts, smoke=args.smoke)


if __name__ == "__main__":
    main()
