"""Clients beside the load: some check every answer, some leave early, some send nonsense."""

import asyncio
import http.client
import itertools
import json
import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from profiling.loadtest.load import Call

TO_THE_END = "?budget_ms=1000000"  # the answer is then the last exit's, whatever the load
PAUSE_S = 0.01
BAD = (
    Call("/predict", b"no image", "image/jpeg"),
    Call("/predict", b"{", "application/json"),
    Call("/predict", b'{"text": ""}', "application/json"),
    Call("/predict", b'{"nothing": 1}', "application/json"),
    Call("/predict", b"--x\r\nnonsense", "multipart/form-data; boundary=x"),
    Call("/predict", b"hello", "text/plain"),
)


@dataclass
class Checked:
    """What a checking client saw.

    Attributes:
        answered: Requests answered with 200.
        lost: Requests without an answer, or with another status.
        wrong: Answers to another request, of another class, or more than were asked for.
    """

    answered: int = 0
    lost: int = 0
    wrong: int = 0


@dataclass
class Aside:
    """What the clients beside the load saw: answers that were checked, and to bad requests."""

    checked: Checked = field(default_factory=Checked)
    left: int = 0
    refused: int = 0
    accepted: int = 0  # bad requests that were not refused with 4xx


@contextmanager
def clients_aside(url: str, calls: Sequence[Call], number: int) -> Iterator[Aside]:
    """Run the clients until the end.

    Args:
        url: The server's.
        calls: What the checking client sends.
        number: Of the phase; makes request ids unique.
    """
    aside, stop = Aside(), threading.Event()
    threads = [
        threading.Thread(target=check_answers, args=(url, calls, number, aside.checked, stop)),
        threading.Thread(target=send_nonsense, args=(url, aside, stop)),
        threading.Thread(target=lambda: asyncio.run(leave_early(url, calls[-1], aside, stop))),
    ]
    for thread in threads:
        thread.start()
    try:
        yield aside
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def check_answers(
    url: str, calls: Sequence[Call], number: int, checked: Checked, stop: threading.Event
) -> None:
    """Send each call with an id of its own; the answer must have it, and be that of before."""
    expected: dict[int, int] = {}
    client = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    for count in itertools.count():
        if stop.wait(PAUSE_S):
            break
        place, request_id = count % len(calls), f"soak-{number}-{count}"
        call = calls[place]
        headers = {"Content-Type": call.content_type or "", "X-Request-ID": request_id}
        try:
            client.request("POST", call.path + TO_THE_END, call.body, headers)
            answer = client.getresponse()
            told = json.loads(answer.read())
        except (OSError, http.client.HTTPException, ValueError):
            checked.lost += 1
            client.close()
            continue
        if answer.status != 200:
            checked.lost += 1
        elif (
            answer.getheader("X-Request-ID") != request_id
            or told["request_id"] != request_id
            or expected.setdefault(place, told["class_id"]) != told["class_id"]
        ):
            checked.wrong += 1
        else:
            checked.answered += 1
    client.close()


def send_nonsense(url: str, aside: Aside, stop: threading.Event) -> None:
    """Send bad bodies in turn."""
    for call in itertools.cycle(BAD):
        if stop.wait(5 * PAUSE_S):
            return
        client = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
        try:
            client.request("POST", call.path, call.body, {"Content-Type": call.content_type or ""})
            refused = 400 <= client.getresponse().status < 500
            aside.refused += refused
            aside.accepted += not refused
        except (OSError, http.client.HTTPException):
            pass  # a process was killed
        finally:
            client.close()


async def leave_early(url: str, call: Call, aside: Aside, stop: threading.Event) -> None:
    """Send requests, whole or in part, and disconnect before the response."""
    host, _, port = url.removeprefix("http://").partition(":")
    head = (
        f"POST {call.path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {call.content_type}\r\n"
        f"Content-Length: {len(call.body)}\r\n\r\n"
    )
    request, rng = head.encode() + call.body, random.Random(0)
    while not stop.is_set():
        try:
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(request if rng.random() < 0.7 else request[: rng.randrange(len(request))])
            await writer.drain()
            await asyncio.sleep(0.02)
            writer.close()
            aside.left += 1
        except OSError:
            pass  # a process was killed
        await asyncio.sleep(0.05)
