"""CPU time of a row that goes from one process to another over a channel.

    .venv/bin/python -m benchmarks.transport

A row is a float32 image of 12 kB and six columns, as a front-end sends it to an engine; messages
hold 1, 16 or 64 rows. The two processes run event loops of uvloop and do nothing else, and what
is counted is all of their CPU time: the sender's includes the loop, the receiver's includes making
arrays of the bytes. Encoding and decoding alone, without a socket, come beside that. A figure is
the median of the rounds. JSON on the last line.
"""

import asyncio
import socket
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import numpy as np
import uvloop

from benchmarks.harness import REPO, make_parser, print_figures, print_report
from server.processes.channel import Channel
from server.processes.wire import Message, MessageReader, encode

ROWS_A_MESSAGE = (1, 16, 64)
ROWS, SMOKE_ROWS = 16_384, 256  # of a round
ROUNDS, SMOKE_ROUNDS = 7, 1
MOST_PENDING_BYTES = 2**20
PAUSE_S = 0.001
COLUMNS = ("int64", "float64", "float64", "int32", "float32", "uint8")


class RowCost(NamedTuple):
    """CPU time of one row, in microseconds."""

    sender_us: float
    receiver_us: float


def make_message(rows: int) -> Message:
    """A message of so many rows."""
    images = np.random.default_rng(0).random((rows, 32, 32, 3), np.float32)
    columns = (np.arange(rows).astype(dtype) for dtype in COLUMNS)
    return Message("rows", {"model": "cifar10", "outstanding_ms": 3.5}, (images, *columns))


def codec_cost(rows_a_message: int, rows: int) -> RowCost:
    """Encode and decode rows without a socket."""
    message = make_message(rows_a_message)
    data, reader = b"".join(encode(message)), MessageReader()
    times = rows // rows_a_message
    sender_s = _cpu_s(lambda: encode(message), times)
    receiver_s = _cpu_s(lambda: reader.feed(data), times)
    return RowCost(sender_s / rows * 1e6, receiver_s / rows * 1e6)


def _cpu_s(call: Callable[[], object], times: int) -> float:
    started = time.process_time()
    for _ in range(times):
        call()
    return time.process_time() - started


async def channel_cost(channel: Channel, counted: asyncio.Queue[float], message: Message,
                       rows: int) -> RowCost:  # fmt: skip
    """Send rows to the other process; it answers with the CPU time that they took there."""
    started = time.process_time()
    for _ in range(rows // len(message.arrays[0])):
        channel.send(message)
        while channel.pending_bytes > MOST_PENDING_BYTES:
            await asyncio.sleep(PAUSE_S)
    while channel.pending_bytes:
        await asyncio.sleep(PAUSE_S)
    sender_s = time.process_time() - started
    channel.send(Message("count"))
    return RowCost(sender_s / rows * 1e6, await counted.get() / rows * 1e6)


async def send(sock: socket.socket, rows: int, rounds: int) -> dict[int, list[RowCost]]:
    """Measure every size of messages in each round."""
    counted = asyncio.Queue[float]()
    channel = Channel(
        sock,
        asyncio.get_running_loop(),
        lambda message, _: counted.put_nowait(message.fields["cpu_s"]),
        lambda: counted.put_nowait(float("nan")),
    )
    costs: dict[int, list[RowCost]] = {size: [] for size in ROWS_A_MESSAGE}
    try:
        for size in ROWS_A_MESSAGE:  # warm up
            await channel_cost(channel, counted, make_message(size), SMOKE_ROWS)
        for _ in range(rounds):
            for size, kept in costs.items():
                kept.append(await channel_cost(channel, counted, make_message(size), rows))
    finally:
        channel.close()
    return costs


async def receive(sock: socket.socket) -> None:
    """Take rows, and answer `count` with the CPU time since the last; until the other end goes."""
    gone = asyncio.Event()
    started = time.process_time()

    def hear(message: Message, _: list[int]) -> None:
        nonlocal started
        if message.kind == "count":
            now = time.process_time()
            channel.send(Message("counted", {"cpu_s": now - started}))
            started = now

    channel = Channel(sock, asyncio.get_running_loop(), hear, gone.set)
    await gone.wait()


def with_receiver(rows: int, rounds: int) -> dict[int, list[RowCost]]:
    """Start the receiving process and measure."""
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, "-m", "benchmarks.transport", "--receive", str(theirs.fileno())]
        process = subprocess.Popen(command, cwd=REPO, pass_fds=[theirs.fileno()])
    try:
        return uvloop.run(send(ours, rows, rounds))
    finally:
        process.wait()


def median_cost(costs: list[RowCost]) -> dict[str, float]:
    """The median of each side."""
    return {
        side: round(median(getattr(each, side) for each in costs), 3) for side in RowCost._fields
    }


def _add_options(parser: ArgumentParser) -> ArgumentParser:
    parser.add_argument("--receive", type=int, metavar="FD", help="be the receiving process")
    return parser


def main() -> None:
    """Measure, and print a table and JSON."""
    args = _add_options(make_parser(__doc__)).parse_args()
    if args.receive is not None:
        uvloop.run(receive(socket.socket(fileno=args.receive)))
        return
    rows, rounds = (SMOKE_ROWS, SMOKE_ROUNDS) if args.smoke else (ROWS, ROUNDS)
    figures = {
        "row_bytes": sum(array.nbytes for array in make_message(1).arrays),
        "channel": {
            f"{size} rows a message": median_cost(costs)
            for size, costs in with_receiver(rows, rounds).items()
        },
        "encode_and_decode_alone": {
            f"{size} rows a message": median_cost([codec_cost(size, rows) for _ in range(rounds)])
            for size in ROWS_A_MESSAGE
        },
    }
    print_figures(figures)
    print_report(figures, smoke=args.smoke)


if __name__ == "__main__":
    main()
