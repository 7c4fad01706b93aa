"""What other clients wait while one sends the largest bodies, of every kind, again and again.

    .venv/bin/python -m benchmarks.large_bodies [--front-ends 0] [--seconds 5] [--only NAME]

A probe in a process of its own asks /livez and sends a small image, each on an open connection,
every 10 ms. Two clients send the bodies one after another. JSON on the last line.
"""

import base64
import http.client
import json
import random
import select
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from benchmarks.harness import (
    IMAGE_BUNDLE,
    REPO,
    TEXT_BUNDLE,
    image_files,
    make_parser,
    print_report,
    serving,
)

MIB = 2**20
EVERY_S, SETTLE_S, CLIENTS = 0.01, 0.5, 2
JSON, FORM = "application/json", "multipart/form-data; boundary=b"


class Body(NamedTuple):
    """A body and its content type."""

    content: bytes
    kind: str


def form(name: bytes, content: bytes) -> Body:
    """A form of one part."""
    head = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n' % name
    return Body(b"%s%s\r\n--b--\r\n" % (head, content), FORM)


def bodies(size: int) -> dict[str, Callable[[], Body]]:
    """Bodies of about so many bytes, by name; made one at a time, for each is large."""
    noise = random.Random(0).randbytes(size)
    tiny = b",".join([b'"a"'] * min(size // 4, 1_000_000))
    lines = base64.encodebytes(noise[: size // 4 * 3 - size // 50]).decode()
    return {
        "text": lambda: Body(b'{"text":"%s"}' % (b"word " * (size // 5)), JSON),
        "text of two-byte characters": lambda: Body(
            b'{"text":"%s"}' % ("ä" * (size // 2)).encode(), JSON
        ),
        "text of escapes": lambda: Body(b'{"text":"%s"}' % (b"\\u00e4" * (size // 6)), JSON),
        "tiny items": lambda: Body(b'{"texts":[%s]}' % tiny, JSON),
        "base64": lambda: Body(
            b'{"image":"%s"}' % base64.b64encode(noise[: size // 4 * 3 - 100]), JSON
        ),
        "base64 in lines": lambda: Body(json.dumps({"image": lines}).encode(), JSON),
        "base64 in a list": lambda: Body(
            json.dumps(
                {"images": [base64.b64encode(noise[: size // 16 * 3]).decode()] * 3}
            ).encode(),
            JSON,
        ),
        "form with a file": lambda: form(b'file"; filename="x', noise),
        "form with a text": lambda: form(b"text", "ä".encode() * (size // 2)),
        "image": lambda: Body(image_files(1)[0] + noise, "image/jpeg"),
    }


def probe(netloc: str) -> None:
    """Ask until the input ends; print the milliseconds of each answer, by kind, as JSON."""
    took_ms: dict[str, list[float]] = {"livez": [], "image": []}
    client, image = http.client.HTTPConnection(netloc, timeout=60), image_files(1)[0]
    print("ready", flush=True)
    while not select.select([sys.stdin], [], [], EVERY_S)[0]:
        for kind in took_ms:
            begun_s = time.perf_counter()
            if kind == "livez":
                client.request("GET", "/livez")
            else:
                client.request("POST", "/predict", image, {"Content-Type": "image/jpeg"})
            answer = client.getresponse()
            answer.read()
            assert answer.status == 200, f"{kind} is answered {answer.status}"
            took_ms[kind].append((time.perf_counter() - begun_s) * 1e3)
    print(json.dumps(took_ms), flush=True)


def send(netloc: str, body: Body, stop: threading.Event, seen: Counter[str]) -> None:
    """Send one body again and again."""
    while not stop.is_set():
        client = http.client.HTTPConnection(netloc, timeout=60)
        try:
            client.request("POST", "/predict", body.content, {"Content-Type": body.kind})
            seen[str(client.getresponse().status)] += 1
        except OSError:
            seen["closed"] += 1
        finally:
            client.close()


def measure(netloc: str, body: Body | None, seconds: float) -> dict[str, Any]:
    """What the probe sees while a body is sent; without one, on an idle server."""
    command = [sys.executable, "-m", "benchmarks.large_bodies", "--probe", netloc]
    stop, seen = threading.Event(), Counter[str]()
    with subprocess.Popen(
        command, cwd=REPO, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        senders = [
            threading.Thread(target=send, args=(netloc, body, stop, seen))
            for _ in range(CLIENTS if body is not None else 0)
        ]
        for thread in senders:
            thread.start()
        time.sleep(seconds)
        took_ms: dict[str, list[float]] = json.loads(process.communicate()[0])
    stop.set()
    for thread in senders:
        thread.join()
    time.sleep(SETTLE_S)
    figures: dict[str, Any] = {"answers": dict(seen)}
    for kind, times_ms in took_ms.items():
        p50, p99 = np.percentile(times_ms, (50, 99)).tolist()
        figures[kind] = {
            "p50_ms": round(p50, 1),
            "p99_ms": round(p99, 1),
            "max_ms": round(max(times_ms), 1),
        }
    return figures


def main() -> None:
    """Measure every body."""
    parser = make_parser(__doc__)
    parser.add_argument("--front-ends", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each body")
    parser.add_argument("--only", help="one of the bodies")
    parser.add_argument("--probe", metavar="HOST:PORT", help="ask that server until the input ends")
    args = parser.parse_args()
    if args.probe is not None:
        probe(args.probe)
        return
    size, seconds = (MIB, 0.5) if args.smoke else (31 * MIB, args.seconds)
    made = bodies(size)
    if args.only is not None and args.only not in made:
        parser.error(f"{args.only!r} is no body; give one of {', '.join(made)}")
    bundles = ("--bundle", str(IMAGE_BUNDLE), "--bundle", str(TEXT_BUNDLE))
    figures = {}
    with serving(*bundles, "--front-ends", str(args.front_ends), "--log-level", "error") as server:
        netloc = urlsplit(server.url).netloc
        for name in ["none"] if args.only is None else []:
            figures[name] = measure(netloc, None, seconds)
            print(f"{name}: {figures[name]}", flush=True)
        for name, make in made.items():
            if args.only in (None, name):
                figures[name] = measure(netloc, make(), seconds)
                print(f"{name}: {figures[name]}", flush=True)
    print_report({"bodies": figures}, smoke=args.smoke)


if __name__ == "__main__":
    main()
