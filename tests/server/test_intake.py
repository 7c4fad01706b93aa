"""What connections hold, and who gives way."""

from __future__ import annotations

import asyncio
import math
import resource
from collections import Counter

import pytest

from server import intake as intake_module
from server.intake import STALE_S, Intake, descriptors_for
from server.limits import Limits
from server.refusals import RefusalLog


class FakeConnection:
    """A connection that notes what is asked of it."""

    def __init__(self, intake: Intake, heard_s: float = 0.0, receiving: int = 0) -> None:
        self.intake, self.heard_s, self.receiving_bytes = intake, heard_s, receiving
        self.due_s, self.asked = math.inf, Counter[str]()
        intake.held_bytes += receiving

    def time_out(self) -> None:
        self.asked["time out"] += 1
        self.due_s = math.inf

    def give_way(self) -> None:
        self.asked["give way"] += 1
        self.intake.held_bytes -= self.receiving_bytes
        self.receiving_bytes = 0


class Counts:
    def __init__(self) -> None:
        self.rejected = Counter[str]()

    def observe_request(self, route: str, status: int) -> None: ...

    def count_rejected(self, reason: str) -> None:
        self.rejected[reason] += 1


def now_s() -> float:
    return asyncio.get_running_loop().time()


async def bounds_connections() -> None:
    counts = Counts()
    intake = Intake(Limits(max_connections=2), RefusalLog(counts))
    one, two, three = (FakeConnection(intake, now_s()) for _ in range(3))
    assert intake.enter(one, 5) is None and intake.enter(two, 6) is None
    refusal = intake.enter(three, 7)
    assert refusal is not None and refusal.status == 503 and refusal.headers["Retry-After"] == "1"
    intake.leave(one)
    assert intake.enter(three, 7) is None
    # The one that has been idle longest gives way, once it has been idle for a while.
    assert list(intake.idle) == [two, three], "who has asked nothing yet is idle"
    four = FakeConnection(intake, now_s())
    assert intake.enter(four, 8) is not None
    two.heard_s -= 2 * STALE_S
    assert intake.enter(four, 8) is None
    assert two.asked == {"give way": 1} and not three.asked
    assert counts.rejected == {"idle": 1}


async def bounds_descriptors() -> None:
    intake = Intake(Limits(max_connections=8))
    refusal = intake.enter(FakeConnection(intake), 10**6)
    assert refusal is not None and refusal.reason == "descriptors" and refusal.status == 503


async def bounds_room() -> None:
    intake = Intake(Limits(max_held=1000))
    fresh = FakeConnection(intake, now_s(), 300)
    small, large = (FakeConnection(intake, now_s() - 2 * STALE_S, size) for size in (100, 500))
    for each in (fresh, small, large):
        intake.enter(each, 5)
    assert intake.find_room(100, 1000) and not large.asked
    assert intake.find_room(500, 1000)
    assert large.asked and not small.asked and not fresh.asked, "the largest that stalls is enough"
    assert not intake.find_room(800, 1000) and small.asked and not fresh.asked


async def bounds_clocks() -> None:
    intake = Intake()
    one, two = FakeConnection(intake), FakeConnection(intake)
    one.due_s, two.due_s = now_s() + 0.03, now_s() + 0.06
    for each in (one, two):
        intake.enter(each, 5)
        intake.look_at(each.due_s)
    while not one.asked:
        await asyncio.sleep(0.005)
    assert intake.next_look_s < math.inf, "it looks again when the other one is due"
    while not two.asked:
        await asyncio.sleep(0.005)
    assert one.asked == two.asked == {"time out": 1} and intake.next_look_s == math.inf


@pytest.mark.parametrize(
    "case", [bounds_connections, bounds_descriptors, bounds_room, bounds_clocks],
    ids=["connections", "descriptors", "room", "clocks"],
)  # fmt: skip
def test_bounds(case: object) -> None:
    asyncio.run(case())  # type: ignore[operator]


def test_the_time_to_retry_is_that_of_the_bytes_that_drain() -> None:
    now = [100.0]
    intake = Intake(Limits(max_held=1000, body_s=20), clock=lambda: now[0])
    intake.held_bytes = 900
    assert intake.retry_after_s() == 20, "until those that never become whole are given up"
    now[0], intake.drained_bytes = 103.0, 600  # 200 bytes a second
    assert intake.retry_after_s() == 5
    assert intake.bytes_full(750).headers["Retry-After"] == "5"
    assert intake.bytes_full(750).status == 429


@pytest.mark.parametrize(("soft", "hard", "wanted"), [(256, 4096, 1152), (256, 512, 512)])
def test_descriptors_are_raised_as_far_as_they_may(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, wanted: int
) -> None:
    now = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda kind: now[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda kind, both: now.append(both))
    assert intake_module.resource is resource
    assert descriptors_for(1024) == wanted and now[-1] == (wanted, hard)
