from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import pytest

from server.processes.child_life import LifeLimits
from server.processes.supervisor import Child, Supervisor
from server.processes.zygote import StartFailed, Zygote
from tests.server.processes.running import run


class FakeZygote:
    """Counts pids from 1; `fails` starts fail, and each other child ends when it is killed."""

    def __init__(self, fails: int = 0) -> None:
        self.on_exit: Callable[[int, int], None]
        self.on_death: Callable[[], None]
        self.fails = fails
        self.pids = 0
        self.killed: list[int] = []

    async def start(
        self, role: str, index: int, settings: Mapping[str, Any], fds: Sequence[int]
    ) -> int:
        await asyncio.sleep(0)
        if self.fails:
            self.fails -= 1
            raise StartFailed("no room")
        self.pids += 1
        return self.pids

    def kill(self, pid: int, signal_number: int) -> None:
        self.killed.append(pid)
        asyncio.get_running_loop().call_soon(self.on_exit, pid, signal_number)


class Watched:
    """A supervisor over a fake zygote, at a time that stands still, and what it reported."""

    def __init__(self, zygote: FakeZygote, **limits: Any) -> None:
        self.zygote = zygote
        self.happened: list[str] = []
        self.supervisor = Supervisor(
            cast(Zygote, zygote),
            clock=lambda: 0.0,
            limits=LifeLimits(first_backoff_s=0.0, max_backoff_s=0.0, **limits),
            on_given_up=lambda child: self.happened.append(f"given up {child.pid}"),
            on_lost=lambda: self.happened.append("lost"),
        )

    def add(self, role: str = "engine", index: int = 0, fds: Sequence[int] = ()) -> None:
        self.supervisor.add(
            role,
            index,
            lambda: ({}, fds),
            lambda child: self.happened.append(f"started {child.pid}"),
            lambda child: self.happened.append(f"ended {child.pid}"),
        )

    async def settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    async def end(self, pid: int) -> None:
        self.zygote.on_exit(pid, 0)
        await self.settle()


def test_a_dead_child_is_started_again_at_once_and_counted() -> None:
    async def main() -> None:
        watched = Watched(FakeZygote())
        watched.add("engine")
        watched.add("front_end")
        await watched.settle()
        first, other = watched.supervisor.children
        assert (first, other) == (Child("engine", 0, 1, 1), Child("front_end", 0, 1, 2))
        await watched.end(1)
        assert watched.supervisor.children == [Child("engine", 0, 2, 3), other]
        assert watched.supervisor.restarts == {"engine": 1}
        assert watched.happened == ["started 1", "started 2", "ended 1", "started 3"]

    asyncio.run(main())


def test_what_is_said_of_a_child_that_has_ended_is_ignored() -> None:
    async def main() -> None:
        watched = Watched(FakeZygote(), max_failed_starts=2)
        watched.add()
        await watched.settle()
        (first,) = watched.supervisor.children
        await watched.end(1)
        watched.supervisor.ready(first)
        watched.supervisor.beat(first)
        await watched.end(2)
        assert watched.happened[-1] == "given up 0" and not watched.supervisor.children

    asyncio.run(main())


def test_a_child_that_is_never_ready_is_given_up_after_three_starts() -> None:
    async def main() -> None:
        watched = Watched(FakeZygote(fails=1))
        watched.add()
        await watched.settle()
        await watched.end(1)
        await watched.end(2)
        assert watched.happened == ["started 1", "ended 1", "started 2", "ended 2", "given up 0"]
        assert watched.supervisor.restarts == {"engine": 2}

    asyncio.run(main())


def test_a_child_that_was_ready_is_never_given_up() -> None:
    async def main() -> None:
        watched = Watched(FakeZygote())
        watched.add()
        await watched.settle()
        watched.supervisor.ready(watched.supervisor.children[0])
        for pid in range(1, 10):
            await watched.end(pid)
        assert watched.happened[-1] == "started 10"

    asyncio.run(main())


def test_descriptors_are_closed_whether_or_not_the_child_starts() -> None:
    async def main() -> None:
        for fails in (0, 3):
            reads, writes = os.pipe()
            watched = Watched(FakeZygote(fails), max_failed_starts=1)
            watched.add(fds=(writes,))
            await watched.settle()
            assert os.read(reads, 1) == b""
            os.close(reads)

    asyncio.run(main())


def test_a_setup_that_raises_is_a_failed_start() -> None:
    def broken() -> tuple[dict[str, Any], Sequence[int]]:
        raise LookupError("no such bundle")

    async def main() -> None:
        watched = Watched(FakeZygote())
        watched.supervisor.add("engine", 0, broken, lambda _: None, lambda _: None)
        await watched.settle()
        assert watched.happened == ["given up 0"]

    asyncio.run(main())


def test_a_child_that_starts_while_the_server_stops_is_killed() -> None:
    async def main() -> None:
        watched = Watched(FakeZygote())
        watched.add()
        await watched.supervisor.stop(60)
        assert watched.happened == ["started 1", "ended 1"] and watched.zygote.killed == [1]

    asyncio.run(main())


def test_nothing_is_started_after_the_zygote_died() -> None:
    async def main() -> None:
        watched = Watched(FakeZygote())
        watched.add()
        await watched.settle()
        watched.zygote.on_death()
        await watched.supervisor.stop(60)
        assert watched.happened == ["started 1", "ended 1", "lost"]

    asyncio.run(main())


def test_a_killed_child_is_replaced() -> None:
    value, output = run("restarted")
    assert value["happened"] == ["ready 1", "ended 1", "ready 2", "ended 2"]
    assert value["restarts"] == {"beat": 1}
    assert "was killed by SIGKILL" in output


@pytest.mark.slow
def test_a_hung_child_is_suspect_then_killed_and_replaced() -> None:
    value, output = run("hung")
    assert value.index("suspect True") < value.index("ended 1") < value.index("ready 2")
    assert "is silent: suspect" in output and "has given no sign for" in output


@pytest.mark.slow
def test_a_child_that_goes_on_is_suspect_no_more() -> None:
    value = run("paused").value
    assert value[:3] == ["ready 1", "suspect True", "suspect False"] and "ready 2" not in value


@pytest.mark.slow
def test_a_pause_of_control_is_no_silence_of_children() -> None:
    assert "ready 2" not in run("stalled").value


def test_restarts_leak_no_descriptors() -> None:
    value = run("leaks").value
    assert value["before"] == value["after"]


def test_children_that_do_not_end_in_time_are_killed() -> None:
    value, output = run("stubborn")
    assert value == {"happened": ["ready 1", "ended 1"], "left": []}
    assert "has not ended within 0.1 s: killed" in output


def test_a_lost_zygote_ends_the_supervision() -> None:
    assert run("lost").value == ["ready 1", "ended 1", "lost"]
