"""Measure what the access log and traces cost a request, off and on.

    .venv/bin/python -m benchmarks.observability [--baseline CHECKOUT]

Real servers in several processes, whose network takes no time, answer one image after the other;
each is asked in turn, a few hundred requests at a time. Reported is the processor time of all
processes of a server per request, and how much of it is the front-end's: the median over the
rounds, and the difference to the first server in the same round. With `--baseline` the first
server runs the code of another checkout, such as one from before a change; without, it is the
server that has everything off. JSON on the last line.
"""

import http.client
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import numpy as np

from benchmarks.harness import (
    FREE,
    IMAGE_BUNDLE,
    REPO,
    RunningServer,
    image_files,
    make_parser,
    print_figures,
    print_report,
    serving,
    write_costs,
)

ROUNDS, REQUESTS = 30, 400
SMOKE_ROUNDS, SMOKE_REQUESTS = 2, 10
FRONT_END = "front-en"  # the kernel keeps 15 characters of a name
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Way(NamedTuple):
    """A way to serve, and to ask.

    Attributes:
        options: Of the server.
        variables: Of its environment, beside the collector's address.
        headers: Of each request.
        checkout: Whose code runs.
    """

    options: tuple[str, ...] = ()
    variables: Mapping[str, str] = {}
    headers: Mapping[str, str] = {}
    checkout: Path = REPO


OTLP = {"OTEL_TRACES_EXPORTER": "otlp"}
WAYS = {
    "off": Way(),
    "off, traceparent sent": Way(headers={"traceparent": TRACEPARENT}),
    "access log of every request": Way(("--access-log", "1")),
    "access log of every request, json": Way(("--access-log", "1", "--log-format", "json")),
    "traces, none sampled": Way(variables={**OTLP, "OTEL_TRACES_SAMPLER": "always_off"}),
    "traces, 1 in 100 sampled": Way(
        variables={
            **OTLP,
            "OTEL_TRACES_SAMPLER": "traceidratio",
            "OTEL_TRACES_SAMPLER_ARG": "0.01",
        }
    ),
    "traces, all sampled": Way(variables={**OTLP, "OTEL_TRACES_SAMPLER": "always_on"}),
}


class Meter:
    """Asks one server, and reads what that cost it."""

    def __init__(self, server: RunningServer, headers: Mapping[str, str]) -> None:
        self._pids = server.processes()
        self._headers = {"Content-Type": "image/jpeg", **headers}
        host = server.url.removeprefix("http://")
        self._connection = http.client.HTTPConnection(host)

    def ask(self, images: list[bytes], count: int) -> tuple[float, float]:
        """Return microseconds per request: of all processes, and of the front-end."""
        before = self._cpu_us()
        for number in range(count):
            image = images[number % len(images)]
            self._connection.request("POST", "/predict", image, self._headers)
            response = self._connection.getresponse()
            response.read()
            assert response.status == 200, "nothing is refused here"
        spent = {name: us - before[name] for name, us in self._cpu_us().items()}
        front = sum(us for name, us in spent.items() if name.startswith(FRONT_END))
        return sum(spent.values()) / count, front / count

    def _cpu_us(self) -> dict[str, float]:
        """Processor time of each process, from the scheduler: finer than the ticks of `stat`."""
        used = {}
        for name, pid in self._pids.items():
            tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
            used[name] = sum(int(task.read_text().split()[0]) for task in tasks) / 1e3
        return used


@contextmanager
def collector() -> Iterator[str]:
    """Run a server that takes spans and keeps none; yield its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables of this process, which the servers it starts inherit."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def measure(ways: Mapping[str, Way], rounds: int, requests: int) -> dict[str, Any]:
    """Measure the ways in turns; return the figures of each."""
    images = image_files(64)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = stack.enter_context(collector())
        # The servers' lines go to a file, as in production to a pipe or a file, not to a terminal.
        log = stack.enter_context((folder / "log").open("wb"))
        stderr = os.dup(2)
        stack.callback(os.close, stderr)
        stack.callback(os.dup2, stderr, 2)
        os.dup2(log.fileno(), 2)
        free = ("--bundle", str(IMAGE_BUNDLE), "--backend", "replay", "--front-ends", "1")
        costs = ("--replay-costs", str(write_costs(FREE, folder)))
        meters = {}
        for name, way in ways.items():
            with environment({**way.variables, "OTEL_EXPORTER_OTLP_ENDPOINT": url}):
                is_on = "OTEL_TRACES_EXPORTER" in way.variables
                with environment({} if is_on else {"OTEL_SDK_DISABLED": "true"}):
                    options = (*free, *costs, *way.options)
                    server = stack.enter_context(serving(*options, checkout=way.checkout))
            meters[name] = Meter(server, way.headers)
        for meter in meters.values():  # warm-up
            meter.ask(images, requests)
        spent = np.array(
            [[meter.ask(images, requests) for meter in meters.values()] for _ in range(rounds)]
        )  # (rounds, ways, 2)
    return _figures(list(ways), spent)


def _figures(names: list[str], spent: np.ndarray) -> dict[str, Any]:
    """Medians over the rounds, and over the differences to the first way, in microseconds."""
    more = spent - spent[:, :1]
    return {
        name: {
            "us_per_request": round(float(np.median(spent[:, place, 0])), 1),
            "more_us": round(float(np.median(more[:, place, 0])), 1),
            "more_us_in_front_end": round(float(np.median(more[:, place, 1])), 1),
            "more_us_half_of_rounds_within": [
                round(float(each), 1) for each in np.percentile(more[:, place, 0], (25, 75))
            ],
        }
        for place, name in enumerate(names)
    }


def main() -> None:
    """Print the figures."""
    parser = make_parser(__doc__)
    parser.add_argument("--baseline", type=Path, help="a checkout whose server is the first")
    args = parser.parse_args()
    ways: dict[str, Way] = dict(WAYS)
    if args.baseline is not None:
        ways = {"baseline": Way(checkout=args.baseline.resolve()), **ways}
    rounds, requests = (SMOKE_ROUNDS, SMOKE_REQUESTS) if args.smoke else (ROUNDS, REQUESTS)
    figures = measure(ways, rounds, requests)
    print_figures(figures)
    print_report(figures, smoke=args.smoke)


if __name__ == "__main__":
    main()
