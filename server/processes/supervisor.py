"""Starts the children of control, watches them and starts them again."""

import asyncio
import logging
import os
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from server.lifespan import until_next_s
from server.processes.child_life import Action, ChildLife, LifeLimits
from server.processes.zygote import StartFailed, Zygote

log = logging.getLogger(__name__)

DEFAULT_LIMITS = LifeLimits()
UNKILLABLE_S = 0.5

# Settings and descriptors of the next start. The supervisor closes the descriptors in this process
# once they are sent (or the start has failed): hand over duplicates of what is to stay open.
MakeSetup = Callable[[], tuple[dict[str, Any], Sequence[int]]]


@dataclass(frozen=True)
class Child:
    """One run of a child.

    Attributes:
        role: Its role.
        index: Its place among the children of the role.
        start: Counts the runs at this place from 1.
        pid: Its process.
    """

    role: str
    index: int
    start: int
    pid: int

    def __str__(self) -> str:
        return f"{self.role} {self.index} (pid {self.pid})"


def _nothing(*_: Any) -> None:
    """Do nothing."""


@dataclass(eq=False)
class _Place:
    """A child over all its starts."""

    role: str
    index: int
    make_setup: MakeSetup
    on_started: Callable[[Child], None]
    on_ended: Callable[[Child], None]
    life: ChildLife
    starts: int = 0
    started_s: float = 0.0
    child: Child | None = None
    start_task: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return f"{self.role} {self.index}"


class Supervisor:
    """Keeps a set of children running.

    Run `run()` as a task; call everything from its event loop. All callbacks run there too, must
    not block and must not raise. What is said about a `Child` that has ended is ignored.

    Args:
        zygote: Starts the children; its callbacks belong to the supervisor.
        clock: Seconds.
        limits: How long to wait for a child.
        on_suspect: Called with True once a ready child has been silent, with False when it is heard
            again; a death ends the suspicion without a call.
        on_given_up: Called with the last run of a child that never became ready and that is not
            started again; `pid` is 0 if that run was not even forked.
        on_lost: Called when the zygote has died: all children have ended (`on_ended` has been
            called), and none can be started. Control can only end too.
        tick_s: How often time is looked at.

    Attributes:
        restarts: Starts after the first, by role.
    """

    def __init__(
        self,
        zygote: Zygote,
        clock: Callable[[], float],
        limits: LifeLimits = DEFAULT_LIMITS,
        *,
        on_suspect: Callable[[Child, bool], None] = _nothing,
        on_given_up: Callable[[Child], None] = _nothing,
        on_lost: Callable[[], None] = _nothing,
        tick_s: float = 0.1,
    ) -> None:
        self.restarts: Counter[str] = Counter()
        self._zygote = zygote
        self._clock = clock
        self._limits = limits
        self._on_suspect = on_suspect
        self._on_given_up = on_given_up
        self._on_lost = on_lost
        self._tick_s = tick_s
        self._places: dict[tuple[str, int], _Place] = {}
        self._stopping = False
        self._changed = asyncio.Event()
        zygote.on_exit = self._exited
        zygote.on_death = self._lost

    async def run(self) -> None:
        """Watch the children until cancelled."""
        before_s = self._clock()
        while True:
            delay_s = until_next_s(self._tick_s, before_s)
            await asyncio.sleep(delay_s)
            now_s = self._clock()
            # Heartbeats may wait unread when control itself did not run: a stopped container.
            pause_s = max(0.0, now_s - before_s - delay_s)
            for place in self._places.values():
                place.life.excuse(pause_s, now_s)
                self._act(place)
            before_s = now_s

    def add(
        self,
        role: str,
        index: int,
        make_setup: MakeSetup,
        on_started: Callable[[Child], None],
        on_ended: Callable[[Child], None],
    ) -> None:
        """Start a child and keep it running.

        Args:
            role: One of the zygote's roles.
            index: Its place among the children of the role.
            make_setup: Called before each start.
            on_started: Called after each start.
            on_ended: Called after each death of a child that had been started.
        """
        assert (role, index) not in self._places, f"{role} {index} is there already"
        life = ChildLife(self._limits, self._clock())
        place = _Place(role, index, make_setup, on_started, on_ended, life)
        self._places[role, index] = place
        self._act(place)

    @property
    def children(self) -> list[Child]:
        """The children that run."""
        return [place.child for place in self._places.values() if place.child is not None]

    def ready(self, child: Child) -> None:
        """Note that a child does its work; from now on it must report at least once a second."""
        if (place := self._place_of(child)) is not None:
            place.life.ready(self._clock())

    def beat(self, child: Child) -> None:
        """Note that a child has reported."""
        place = self._place_of(child)
        if place is not None and place.life.beat(self._clock()):
            log.info("%s is heard again", child)
            self._on_suspect(child, False)

    def stop_restarting(self) -> None:
        """Start and kill no child from now on, whatever ends or is silent."""
        self._stopping = True

    async def stop(self, timeout_s: float) -> None:
        """Wait until all children have ended, and kill those that take too long.

        Returns at the latest half a second after that: one that hangs in a driver outlives SIGKILL.

        Call `stop_restarting()`, ask the children to end, then call this.

        Args:
            timeout_s: How long they may take.
        """
        self.stop_restarting()
        await self._all_ended(timeout_s)
        for child in self.children:
            log.warning("%s has not ended within %g s: killed", child, timeout_s)
            self._zygote.kill(child.pid, signal.SIGKILL)
        await self._all_ended(UNKILLABLE_S)

    async def _all_ended(self, timeout_s: float) -> None:
        """Return when all have ended, or after the time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while any(place.child or place.start_task for place in self._places.values()):
                    self._changed.clear()
                    await self._changed.wait()

    def _place_of(self, child: Child) -> _Place | None:
        place = self._places[child.role, child.index]
        return place if place.child == child else None

    def _act(self, place: _Place) -> None:
        while not self._stopping and place.start_task is None:
            action = place.life.next_action(self._clock())
            if action is None:
                return
            self._do(action, place)

    def _do(self, action: Action, place: _Place) -> None:
        child = place.child or Child(place.role, place.index, place.starts, 0)
        match action:
            case Action.START:
                place.start_task = asyncio.create_task(self._start(place))
            case Action.SUSPECT:
                log.warning("%s is silent: suspect", child)
                self._on_suspect(child, True)
            case Action.KILL:
                silent_s = place.life.silent_s(self._clock())
                log.error("%s has given no sign for %.1f s: killed", child, silent_s)
                self._zygote.kill(child.pid, signal.SIGKILL)
            case Action.GIVE_UP:
                log.error("%s did not become ready in %d starts: given up", place.name, child.start)
                self._on_given_up(child)

    async def _start(self, place: _Place) -> None:
        place.starts += 1
        if place.starts > 1:
            self.restarts[place.role] += 1
        pid = await self._fork(place)
        place.start_task = None
        if pid is None:
            self._buried(place)
        else:
            self._started(place, pid)

    async def _fork(self, place: _Place) -> int | None:
        fds: Sequence[int] = ()
        try:
            settings, fds = place.make_setup()
            return await self._zygote.start(place.role, place.index, settings, fds)
        except StartFailed as error:
            log.error("%s was not started: %s", place.name, error)
        except Exception:
            log.exception("%s was not started for an unexpected error", place.name)
        finally:
            for fd in fds:
                os.close(fd)
        return None

    def _started(self, place: _Place, pid: int) -> None:
        child = Child(place.role, place.index, place.starts, pid)
        place.child, place.started_s = child, self._clock()
        log.info("%s started%s", child, f", start {child.start}" if child.start > 1 else "")
        place.on_started(child)
        if self._stopping:  # nobody has asked this one to end
            self._zygote.kill(pid, signal.SIGKILL)

    def _exited(self, pid: int, status: int) -> None:
        for place in self._places.values():
            if place.child is not None and place.child.pid == pid:
                return self._died(place, place.child, _cause(status))

    def _died(self, place: _Place, child: Child, cause: str) -> None:
        place.child = None
        after_s = self._clock() - place.started_s
        level = logging.INFO if self._stopping else logging.WARNING
        log.log(level, "%s %s after %.1f s", child, cause, after_s)
        place.on_ended(child)
        self._buried(place)

    def _buried(self, place: _Place) -> None:
        delay_s = place.life.ended(self._clock())
        if delay_s and not self._stopping:
            log.info("%s starts again in %g s", place.name, delay_s)
        self._changed.set()
        self._act(place)

    def _lost(self) -> None:
        log.error("the zygote has died, and all children with it")
        self.stop_restarting()
        for place in self._places.values():
            if place.child is not None:
                self._died(place, place.child, "ended with the zygote")
        self._on_lost()


def _cause(status: int) -> str:
    """Say how a process ended, from its wait status."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        named = (known.name for known in signal.Signals if known == number)
        return f"was killed by {next(named, f'signal {number}')}"
    return f"ended with status {os.WEXITSTATUS(status)}"
