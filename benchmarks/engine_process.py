"""CPU time of an engine process per row, from the bytes of the requests to those of the results.

    .venv/bin/python -m benchmarks.engine_process [--rounds 7] [--profile OUT.pstats]

An engine process as `eenet serve` runs it takes test images in messages of 1, 8 and 64 rows, as a
front-end sends them: pixels over a socket. The network is a recording that costs nothing, so what
is counted is reading, normalising, queueing, scoring, deciding and writing. `middle` leaves at all
exits by the policy, `last` sends every row to the last exit. Figures are medians of the rounds.
JSON on the last line.
"""

import asyncio
import cProfile
import itertools
import json
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import uvloop
from numpy.typing import NDArray

from benchmarks.harness import (
    FREE,
    IMAGE_BUNDLE,
    MAX_PIXELS,
    REPO,
    image_files,
    make_parser,
    print_figures,
    print_report,
    scheduler_of,
    write_costs,
)
from models.bundle import load_bundle
from models.preprocess import ImagePreprocessor
from server.engine.request import InferenceRequest
from server.processes import black_box
from server.processes.black_box import BlackBox
from server.processes.channel import Channel
from server.processes.engine_host import EngineHost
from server.processes.messages import pack_requests
from server.processes.wire import Message
from server.runner import ModelRunner
from server.settings import Settings

ROWS_A_MESSAGE = (1, 8, 64)
ROWS, SMOKE_ROWS = 16_384, 256  # of a round
ROUNDS, SMOKE_ROUNDS = 7, 1
UNANSWERED = 4  # messages that wait at the engine


def main() -> None:
    """Measure, and print a table and JSON."""
    parser = make_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="default: %(default)s")
    parser.add_argument("--profile", type=Path, help="profile the engine's event loop into a file")
    parser.add_argument("--engine", help="be the engine: its descriptors and settings as JSON")
    args = parser.parse_args()
    if args.engine:
        run_engine(json.loads(args.engine), args.profile)
        return
    rows, rounds = (SMOKE_ROWS, SMOKE_ROUNDS) if args.smoke else (ROWS, args.rounds)
    with tempfile.TemporaryDirectory() as folder:
        costs = write_costs(FREE, Path(folder))
        costs_us = with_engine(str(costs), rows, rounds, args.profile)
    figures = {"us_per_row": {name: median(found) for name, found in costs_us.items()}}
    print_figures(figures)
    print_report(figures, smoke=args.smoke)


def with_engine(costs: str, rows: int, rounds: int, profile: Path | None) -> dict[str, list[float]]:
    """Start an engine process and measure every size of messages in each round."""
    control, controlled = socket.socketpair()
    given = {"control": controlled.fileno(), "costs": costs}
    command = [sys.executable, "-m", "benchmarks.engine_process", "--engine", json.dumps(given)]
    if profile is not None:
        command += ["--profile", str(profile.absolute())]
    with controlled:
        process = subprocess.Popen(command, cwd=REPO, pass_fds=[controlled.fileno()])
    try:
        return asyncio.run(measure(control, process.pid, rows, rounds))
    finally:
        process.wait()


async def measure(
    control: socket.socket, pid: int, rows: int, rounds: int
) -> dict[str, list[float]]:
    """Be control and a front-end of the engine; return CPU microseconds per row by round."""
    engine = Engine(control)
    await engine.connect()
    scheduler = scheduler_of(IMAGE_BUNDLE)
    middle_ms = float(np.mean(scheduler.frontier.costs_ms[:2]))
    points = {
        "middle": scheduler.frontier.at_cost(middle_ms).parameter,
        "last": scheduler.policy.never_exit_parameter,
    }
    clock = (~pid << 3) | 2  # the CPU clock of a process, as clock_getcpuclockid(3) makes it
    costs_us: dict[str, list[float]] = {}
    for round_, (name, parameter), size in itertools.product(
        range(-1, rounds), points.items(), ROWS_A_MESSAGE
    ):
        engine.set_parameter(parameter)
        messages = engine.messages(SMOKE_ROWS if round_ < 0 else rows, size)
        started_s = time.clock_gettime(clock)
        await engine.answer(messages)
        took_us = (time.clock_gettime(clock) - started_s) / (len(messages) * size) * 1e6
        if round_ >= 0:  # the first is there to warm up
            costs_us.setdefault(f"{name}, {size} rows a message", []).append(took_us)
    engine.stop()
    return costs_us


class Engine:
    """An engine process, to its only front-end.

    Args:
        control: The connection that control has.
    """

    def __init__(self, control: socket.socket) -> None:
        self._ready = asyncio.Event()
        self._control = Channel(
            control,
            asyncio.get_running_loop(),
            lambda message, fds: self._ready.set(),  # its first report
            self._ready.set,
        )
        self._pixels = test_pixels()
        self._numbers = itertools.count(1)
        self._unanswered = 0

    async def connect(self) -> None:
        """Wait until it is ready, and be a front-end of it."""
        await self._ready.wait()
        ours, theirs = socket.socketpair()
        with theirs:
            self._control.send(Message("front", {"index": 0}), [theirs.fileno()])
        self._front = Channel(ours, asyncio.get_running_loop(), self._take, lambda: None)

    def set_parameter(self, parameter: float) -> None:
        """Move the policy's parameter."""
        self._control.send(Message("parameter", {"model": 0, "parameter": parameter, "queued": []}))

    def messages(self, rows: int, rows_a_message: int) -> list[Message]:
        """Return messages with so many rows in all."""
        packed = []
        for first in range(0, rows, rows_a_message):
            places = np.arange(first, first + rows_a_message) % len(self._pixels)
            requests = [InferenceRequest((self._pixels[place][None],)) for place in places]
            numbers = [next(self._numbers) for _ in requests]
            packed.append(pack_requests(0, numbers, requests, None))
        return packed

    async def answer(self, messages: list[Message]) -> None:
        """Let it answer messages of one size, some of which wait there at any time."""
        most_rows = UNANSWERED * len(messages[0].arrays[0])
        for message in messages:
            self._front.send(message)
            self._unanswered += len(message.arrays[0])
            while self._unanswered >= most_rows:
                await asyncio.sleep(0)
        while self._unanswered:
            await asyncio.sleep(0)

    def stop(self) -> None:
        """Let the process end."""
        self._control.send(Message("stop"))

    def _take(self, message: Message, fds: list[int]) -> None:
        self._unanswered -= len(message.arrays[0])


def test_pixels() -> NDArray[np.uint8]:
    """The test images as front-ends send them, (N, 32, 32, 3)."""
    preprocess = load_bundle(IMAGE_BUNDLE).preprocessor(MAX_PIXELS)
    assert isinstance(preprocess, ImagePreprocessor), "the bundle reads images"
    return np.concatenate([preprocess.of_pixels(file).state[0] for file in image_files()])


def run_engine(given: dict[str, Any], profile: Path | None) -> None:
    """Run the engine process until the other side says so."""
    settings = Settings(
        bundle=[IMAGE_BUNDLE], backend="replay", replay_costs=given["costs"], max_batch=64,
        engine_workers=1,
    )  # fmt: skip
    runner = ModelRunner(load_bundle(IMAGE_BUNDLE), settings)
    runner.set_workers(1)
    runner.engine.workers = 0
    host = EngineHost(
        settings,
        socket.socket(fileno=given["control"]),
        BlackBox(black_box.create()),
        runners={0: runner},
    )
    if profile is None:
        uvloop.run(host.run())
        return
    profiler = cProfile.Profile()
    profiler.runcall(uvloop.run, host.run())
    profiler.dump_stats(profile)


if __name__ == "__main__":
    main()
