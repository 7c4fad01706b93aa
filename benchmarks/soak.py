"""Two minutes at full load: memory and queues must not grow.

    .venv/bin/python -m benchmarks.soak [--seconds 120]

Images and texts in turn at 32 connections, clients that leave in the middle, budgets that change.
Ends with status 1 if the resident memory of the second half grew by more than 2 %, if rows were
left in a queue, or if any answer was an error. JSON on the last line.
"""

import argparse
import asyncio
import json
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engine import REPO, ZOO, Served, image_files, put_budget, serving
from profiling.latency import machine_name
from profiling.loadtest.http_client import ConnectionConfig
from profiling.loadtest.load import Call, closed_loop

GROWTH = 0.02
WATCHED = ("eenet_queue_depth", "eenet_inflight_samples", "eenet_cancelled_total")
BUDGETS_MS = (None, 1.5, 20.0, 1000.0)
EVERY_S = 2.0


def main() -> int:
    """Load, watch, judge."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=120.0)
    args = parser.parse_args()
    bundles = [str(ZOO / name) for name in ("cifar10-resnet56", "ag-news-minilm")]
    with serving(*[word for bundle in bundles for word in ("--bundle", bundle)]) as server:
        resident_mib: list[float] = []
        over = threading.Event()
        aside = [
            threading.Thread(target=watch, args=(server, resident_mib, over)),
            threading.Thread(target=lambda: asyncio.run(leave(server.url, over))),
        ]
        closed_loop(server.url, calls(), ConnectionConfig(32), seconds=5)  # caches fill
        for thread in aside:
            thread.start()
        load = closed_loop(server.url, calls(), ConnectionConfig(32), seconds=args.seconds)
        over.set()
        for thread in aside:
            thread.join()
        time.sleep(1.0)  # the last departures are seen
        counters = scrape(server.url)
    return judge(np.array(resident_mib), load.outcomes, load.rate, counters)


def judge(
    resident_mib: np.ndarray, outcomes: dict[str, int], rate: float, counters: dict[str, float]
) -> int:
    """Print what was seen; 1 if something grew."""
    second_half = resident_mib[len(resident_mib) // 2 :]
    slope = np.polyfit(np.arange(len(second_half)), second_half, 1)[0] * len(second_half)
    growth = float(slope / second_half.mean())
    left = sum(value for name, value in counters.items() if "cancelled" not in name)
    cancelled = sum(value for name, value in counters.items() if "cancelled" in name)
    good = growth <= GROWTH and left == 0 and set(outcomes) == {"200"} and cancelled > 0
    print(f"resident MiB: first {resident_mib[0]:.1f}, last {resident_mib[-1]:.1f}, "
          f"growth over the second half {100 * growth:.2f} %")  # fmt: skip
    print(f"{rate:.0f} requests/s, outcomes {outcomes}, {cancelled:.0f} rows dropped for clients "
          f"that left, {left:.0f} rows left in queues: {'good' if good else 'BAD'}")  # fmt: skip
    figures = {
        "machine": machine_name(),
        "requests_per_s": rate,
        "outcomes": outcomes,
        "resident_mib": resident_mib.round(1).tolist(),
        "growth_second_half": growth,
        "cancelled": cancelled,
        "left_in_queues": left,
        "good": good,
    }
    print(json.dumps(figures))
    return 0 if good else 1


def calls() -> list[Call]:
    """An image, then a text, and so on."""
    lines = (REPO / "tests/data/ag_news_test_300.tsv").read_text("utf-8").strip().split("\n")[1:]
    texts = [json.dumps({"text": line.split("\t")[2]}).encode() for line in lines]
    both = zip(image_files(), texts, strict=True)
    return [
        call
        for image, text in both
        for call in (
            Call("/predict", image, "image/jpeg"),
            Call("/predict", text, "application/json"),
        )
    ]


def watch(server: Served, resident_mib: list[float], over: threading.Event) -> None:
    """Note the memory, and change the budget."""
    turn = 0
    while not over.wait(EVERY_S):
        status = Path(f"/proc/{server.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        resident_mib.append(int(line.split()[1]) / 1024)
        put_budget(server.url, BUDGETS_MS[turn % len(BUDGETS_MS)])
        turn += 1


async def leave(url: str, over: threading.Event) -> None:
    """Clients that send a request and leave before its answer."""
    host, _, port = url.removeprefix("http://").partition(":")
    call = next(call for call in calls() if call.content_type == "application/json")
    head = (
        f"POST {call.path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(call.body)}\r\n\r\n"
    )
    while not over.is_set():
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(head.encode() + call.body)
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.close()
        await asyncio.sleep(0.1)


def scrape(url: str) -> dict[str, float]:
    """The watched metrics."""
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        lines: list[Any] = answer.read().decode().splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines if line.startswith(WATCHED)]
    return {name: float(value) for name, value in pairs}


if __name__ == "__main__":
    sys.exit(main())
