"""Servers as processes: environments of the peers, start, and stop with all child processes."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness import REPO, free_port

HERE = Path(__file__).resolve().parent
BUILD = REPO / "build" / "peers"
START_S, STOP_S = 120.0, 10.0
SHOWN = (
    "bentoml", "eenet-serve", "litserve", "mosec", "numpy", "onnxruntime", "pillow", "ray",
    "tokenizers", "uvicorn",
)  # fmt: skip


class CannotRun(Exception):
    """A server cannot be installed or started; the message gives the reason."""


class Peer(NamedTuple):
    """Configuration of a peer.

    Attributes:
        command: A program of its environment, and arguments; PORT stands for the port.
        path: Its route for predictions.
        environ: Its environment variables.
    """

    command: tuple[str, ...]
    path: str = "/predict"
    environ: Mapping[str, str] = {}

    def command_in(self, name: str) -> list[str]:
        """The command with the full path of its program in the peer's environment."""
        program, *arguments = self.command
        return [str(BUILD / name / "bin" / program), *arguments]


PEERS = {
    "litserve": Peer(
        ("python", f"{HERE}/serve_litserve.py"),
        environ={"BENCH_PORT": "PORT"},
    ),
    "mosec": Peer(
        ("python", f"{HERE}/serve_mosec.py", "--address", "127.0.0.1", "--port", "PORT",
         "--log-level", "warning"),
        path="/inference",
    ),
    "bentoml": Peer(
        ("bentoml", "serve", "serve_bentoml:Classify", "--working-dir", str(HERE),
         "--host", "127.0.0.1", "--port", "PORT"),
        environ={"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(BUILD / "work")},
    ),
    "ray": Peer(
        ("python", f"{HERE}/serve_ray.py"),
        environ={
            "BENCH_PORT": "PORT",
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
        },
    ),
}  # fmt: skip


def install(name: str) -> None:
    """Create the environment of a peer, unless it is installed already.

    Raises:
        CannotRun: If its packages cannot be installed.
    """
    if is_installed(name):
        return
    folder, pins = BUILD / name, HERE / f"{name}.txt"
    pip = [str(folder / "bin/python"), "-m", "pip", "--disable-pip-version-check"]
    _succeed([sys.executable, "-m", "venv", "--clear", str(folder)])
    _succeed([*pip, "install", "-q", "-r", str(pins)])
    (folder / "installed.txt").write_text(pins.read_text())


def is_installed(name: str) -> bool:
    """Whether the environment of a peer is there, with the pinned packages."""
    installed = BUILD / name / "installed.txt"
    return installed.exists() and installed.read_text() == (HERE / f"{name}.txt").read_text()


def versions(name: str) -> dict[str, str]:
    """Versions of Python and of some packages in the environment of a peer, or of `ours`."""
    python = sys.executable if name == "ours" else str(BUILD / name / "bin/python")
    code = (
        "import json, platform; from importlib.metadata import distributions as d; "
        f"shown = {{d.name.lower(): d.version for d in d() if d.name.lower() in {SHOWN!r}}}; "
        "print(json.dumps({'python': platform.python_version()} | shown))"
    )
    done = subprocess.run(
        [python, "-c", code], cwd=BUILD, capture_output=True, text=True, check=True
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


class Started(NamedTuple):
    """A server that runs.

    Attributes:
        url: Its address.
        process: Its first process.
        mark: Set in the environment of the process and of all its children.
        log: Its log file.
    """

    url: str
    process: subprocess.Popen[bytes]
    mark: str
    log: Path

    @property
    def members(self) -> list[int]:
        """Its running processes; without /proc only the one that was started."""
        own = [self.process.pid] if self.process.poll() is None else []
        marked = f"BENCH_MARK={self.mark}".encode()
        return sorted({*own, *(pid for pid, environ in _environments() if marked in environ)})


@contextmanager
def serving(
    command: Sequence[str], environ: Mapping[str, str], name: str, is_ready: Callable[[str], bool]
) -> Iterator[str]:
    """Start a server and yield its address; otherwise as `starting`."""
    with starting(command, environ, name, is_ready) as server:
        yield server.url


@contextmanager
def starting(
    command: Sequence[str], environ: Mapping[str, str], name: str, is_ready: Callable[[str], bool]
) -> Iterator[Started]:
    """Start a server and yield it; at the end stop it with all its child processes.

    Args:
        command: PORT stands for the port, here and in the values of `environ`.
        environ: Additional environment variables.
        name: Name of its log file.
        is_ready: Whether the server at an address answers.

    Raises:
        CannotRun: If it ends at its start or does not become ready.
    """
    port = free_port()
    command = [part.replace("PORT", str(port)) for part in command]
    environ = {name: value.replace("PORT", str(port)) for name, value in environ.items()}
    url = f"http://127.0.0.1:{port}"
    started = _start(url, command, environ, BUILD / f"{name}.log")
    try:
        _await_ready(started, lambda: is_ready(url))
        yield started
    finally:
        _end(started)


def _start(url: str, command: Sequence[str], environ: Mapping[str, str], log: Path) -> Started:
    folder, mark = BUILD / "work", uuid.uuid4().hex
    folder.mkdir(parents=True, exist_ok=True)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("EENET_")}
    common = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env={**inherited, **environ, **common, "BENCH_MARK": mark},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Started(url, process, mark, log)


def _await_ready(started: Started, is_ready: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + START_S
    while not is_ready():
        if started.process.poll() is not None:
            raise CannotRun(f"it ended at its start: {_last_line(started.log)}")
        if time.monotonic() > deadline_s:
            raise CannotRun(f"it is not ready after {START_S:g} s: {_last_line(started.log)}")
        time.sleep(0.2)


def _end(started: Started) -> None:
    """Ask the server to end, then kill its remaining processes: some peers leave orphans."""
    try:
        started.process.terminate()
        deadline_s = time.monotonic() + STOP_S
        while started.members and time.monotonic() < deadline_s:
            time.sleep(0.1)
    finally:  # also if the benchmark itself is ended meanwhile
        while left := started.members:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)


def _environments() -> Iterator[tuple[int, list[bytes]]]:
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it has ended, or belongs to another user
            yield int(path.parent.name), path.read_bytes().split(b"\0")


def _succeed(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise CannotRun(f"it cannot be installed: {(errors or [done.stderr.strip()])[-1]}")


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "its log is empty"
