"""An honest client in a process of its own: what it sees while a server is attacked.

    python -m tests.conformance.prober HOST PORT PATH PROBE    (then `begin`, `stop` on its input)

A small image every 50 ms and GET /livez (or another probe) every 200 ms, each on a connection of
its own. It prints `ready`, and at the end its figures as JSON.
"""

import asyncio
import io
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from tests.conformance.target import JPEG, Target, head, memory_mib

EVERY_S, QUIET_S, PATIENCE_S = 0.05, 1.0, 10.0
ROOT = Path(__file__).resolve().parent.parent.parent


class Seen(NamedTuple):
    """Times in ms: the slowest before the attack, then of images and probes; memory in MiB."""

    quiet_ms: float
    image_ms: float
    probe_ms: float
    failed: dict[str, int]
    grown_mib: float


def watch(target: Target) -> "Watch":
    """Begin to probe, and wait for a quiet second."""
    command = [sys.executable, "-m", "tests.conformance.prober"]
    process = subprocess.Popen(
        [*command, target.host, str(target.port), target.path, target.probe],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    watch = Watch(process, target, memory_mib(target.pid))
    watch.expect("ready")
    time.sleep(QUIET_S)
    watch.say("begin")
    return watch


class Watch(NamedTuple):
    """A prober at work."""

    process: "subprocess.Popen[str]"
    target: Target
    before_mib: float

    def expect(self, word: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() == word

    def say(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def end(self, peak_mib: float) -> Seen:
        """Stop and return what was seen."""
        output, _ = self.process.communicate("stop\n", timeout=3 * PATIENCE_S)
        return Seen(**json.loads(output), grown_mib=max(peak_mib - self.before_mib, 0.0))


async def probe(target: Target) -> None:
    """Probe until told to stop."""
    images = [head("POST", target.path, len(file), JPEG, CLOSE) + file for file in pictures()]
    health = head("GET", target.probe, extra=CLOSE)
    tasks: dict[str, list[asyncio.Task[tuple[float, str]]]] = {
        "quiet": [],
        "image": [],
        "probe": [],
    }
    words, phase, beat = asyncio.Queue[str](), "quiet", 0
    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin, lambda: words.put_nowait(sys.stdin.readline().strip()))
    print("ready", flush=True)
    while True:
        if not words.empty():
            if (await words.get()) != "begin":
                break
            phase = "image"
        tasks[phase].append(asyncio.create_task(ask_once(target, images[beat % 2])))
        if beat % 4 == 0:
            tasks["probe" if phase == "image" else phase].append(
                asyncio.create_task(ask_once(target, health))
            )
        beat += 1
        await asyncio.sleep(EVERY_S)
    done = {name: [await task for task in group] for name, group in tasks.items()}
    slowest = {f"{name}_ms": max(ms for ms, _ in rows) for name, rows in done.items()}
    seen = Counter(status for name in ("image", "probe") for _, status in done[name])
    failed = {status: count for status, count in seen.items() if status != "200"}
    print(json.dumps(slowest | {"failed": failed}), flush=True)


async def ask_once(target: Target, request: bytes) -> tuple[float, str]:
    """Milliseconds and outcome of one request."""
    begun = time.perf_counter()
    try:
        async with asyncio.timeout(PATIENCE_S):
            reader, writer = await asyncio.open_connection(target.host, target.port)
            writer.write(request)
            answer = await reader.read()
            writer.close()
        status = answer[9:12].decode("latin-1") or "closed"
    except (OSError, TimeoutError) as error:
        status = type(error).__name__
    return (time.perf_counter() - begun) * 1e3, status


def pictures() -> list[bytes]:
    """Two JPEGs of soft stripes: one small enough for the event loop, one for the threads."""
    files = []
    for size in ((32, 32), (160, 120)):
        file = io.BytesIO()
        Image.linear_gradient("L").resize(size).convert("RGB").save(file, "JPEG")
        files.append(file.getvalue())
    return files


CLOSE = "Connection: close\r\n"

if __name__ == "__main__":
    asyncio.run(probe(Target(sys.argv[1], int(sys.argv[2]), None, *sys.argv[3:])))
