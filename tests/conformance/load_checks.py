"""Clients that leave, and changes under load."""

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from tests.conformance.checks import Check, Figures
from tests.conformance.image_checks import real_images
from tests.conformance.target import JPEG, JSON, Target, ask, head, named

CLIENTS = 8
CHANGES, CHANGERS, CHANGE_S = 300, 4, 0.01
TO_THE_END = "?budget_ms=1000000"  # the answer is then the last exit's, whatever the load


class Load:
    """Clients that send images one after another and check every answer.

    Attributes:
        seen: Number of answers by outcome.
        wrong: Answers of another class, or to another request.
    """

    def __init__(self, target: Target) -> None:
        self._target, self._files = target, real_images()[:40]
        self._expected = [self._ask(file, "")[1] for file in self._files]
        self._lock = threading.Lock()
        self.seen: Counter[str] = Counter()
        self.wrong = 0

    def client(self, number: int, stop: threading.Event) -> None:
        count = 0
        while not stop.is_set():
            place = (number + count * CLIENTS) % len(self._files)
            request_id = f"{number}-{count}"
            status, class_id, echoed = self._ask(self._files[place], request_id)
            count += 1
            is_wrong = status == "200" and (class_id, echoed) != (self._expected[place], request_id)
            with self._lock:
                self.seen[status] += 1
                self.wrong += is_wrong
            if status != "200":
                time.sleep(0.02)

    def wait_for(self, count: int, patience_s: float = 30.0) -> None:
        """Wait until so many more were answered with 200."""
        wanted = self.seen["200"] + count
        until(lambda: self.seen["200"] >= wanted, patience_s)

    def _ask(self, file: bytes, request_id: str) -> tuple[str, int | None, str | None]:
        answer = ask(self._target, "POST", self._target.path + TO_THE_END, file, JPEG, request_id)
        if answer.status != "200":
            return answer.status, None, None
        told = json.loads(answer.body)
        return answer.status, told["class_id"], told.get("request_id", request_id)


@contextmanager
def under_load(target: Target) -> Iterator[Load]:
    """Load a server; each request must have been answered in the end."""
    load, stop = Load(target), threading.Event()
    threads = [
        threading.Thread(target=load.client, args=(number, stop)) for number in range(CLIENTS)
    ]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        stop.set()
        for thread in threads:
            thread.join(90)
    assert not any(thread.is_alive() for thread in threads), "a request is never answered"


def until(holds: Callable[[], bool], patience_s: float = 30.0) -> None:
    ends_s = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < ends_s, "it never came true"
        time.sleep(0.02)


def metric(target: Target, name: str) -> float:
    """The sum of a metric's lines."""
    lines = ask(target, "GET", "/metrics").body.decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def is_ready(target: Target) -> bool:
    return ask(target, "GET", "/readyz").status == "200"


def figures_of(load: Load, allowed: dict[str, int]) -> Figures:
    """Figures of a load; `allowed` bounds how many were not answered 200."""
    odd = {status: count for status, count in load.seen.items() if status != "200"}
    too_many = {status: count for status, count in odd.items() if count > allowed.get(status, 0)}
    assert not too_many and not load.wrong, f"lost {too_many}, wrong {load.wrong}"
    return Figures(load.seen.total(), sum(odd.values()), load.wrong, f"others {odd}")


def hang_ups(target: Target) -> Figures:
    """1,000 clients that hang up cost nobody an answer and leave nothing behind."""
    file = real_images()[0]
    request = head("POST", target.path, len(file), JPEG) + file
    with under_load(target) as load:
        load.wait_for(20)
        for number in range(1000):
            with target.connect() as connection:
                # Before the head, within it, within the body, before the answer.
                connection.sendall(request[: (0, 20, len(request) - 50, len(request))[number % 4]])
        load.wait_for(20)
    until(lambda: metric(target, "eenet_inflight_samples") == 0)
    return figures_of(load, {})._replace(note="1,000 hang-ups, nothing in flight afterwards")


def budget_changes(target: Target) -> Figures:
    """100 changes of the budget a second, under load: each is taken, no answer is wrong."""
    # Without a budget another scheduler may serve, which may combine the exits in another way.
    ask(target, "PUT", "/budget", b'{"budget_ms": 1000}', JSON)
    with under_load(target) as load, ThreadPoolExecutor(CHANGERS) as pool:
        started_s = time.monotonic()

        def change(number: int) -> bool:
            time.sleep(max(started_s + number * CHANGE_S - time.monotonic(), 0))
            body = json.dumps({"budget_ms": (1.5, 5.0, 1000.0)[number % 3]}).encode()
            return ask(target, "PUT", "/budget", body, JSON).status != "200"

        wrong = sum(pool.map(change, range(CHANGES)))
        rate = CHANGES / (time.monotonic() - started_s)
    ask(target, "PUT", "/budget", b'{"budget_ms": null}', JSON)
    assert not wrong, f"{wrong} changes were not taken"
    return figures_of(load, {})._replace(note=f"{CHANGES} changes, {rate:.0f} a second")


def a_killed_engine(target: Target) -> Figures:
    """An engine that is killed loses no more than it was running, and another takes its place."""
    return _kill(target, "eenet-engine-0", {"500": CLIENTS, "503": CLIENTS})


def a_killed_front_end(target: Target) -> Figures:
    """A front-end that is killed loses only the requests of its own connections."""
    return _kill(target, "eenet-front-e-0", {"closed": 10 * CLIENTS, "503": CLIENTS})


def _kill(target: Target, name: str, allowed: dict[str, int]) -> Figures:
    before = named(target, name)
    with under_load(target) as load:
        load.wait_for(20)
        os.kill(before, signal.SIGKILL)
        until(lambda: _is_new(target, name, before) and is_ready(target))
        load.wait_for(20)
    return figures_of(load, allowed)


def _is_new(target: Target, name: str, before: int) -> bool:
    try:
        return named(target, name) != before
    except (LookupError, OSError):
        return False


CHECKS = (
    Check(hang_ups, probed=False),
    Check(budget_changes, probed=False),
    Check(a_killed_engine, probed=False, needs_pid=True, processes=True),
    Check(a_killed_front_end, probed=False, needs_pid=True, processes=True),
)
