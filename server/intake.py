"""What strangers may have open at once: connections and bytes."""

import asyncio
import itertools
import logging
import math
import os
import resource
import time
from collections.abc import Callable
from typing import Protocol

from server.errors import BytesFull, ServeError, TooManyConnections
from server.limits import SMALL_SHARE, Limits
from server.refusals import RefusalLog

log = logging.getLogger(__name__)

SMALL_BODY_BYTES = 256 * 1024  # bodies of that size find room where larger ones find none
SPARE_DESCRIPTORS = 64  # for models, pipes and the decode helper
STALE_S = 1.0  # without a byte: a body gives way to others when there is no room
IDLE_S = 0.25  # without a request: a connection gives way to a new one
GAP_S = 0.02  # between two looks at the clocks of all connections
RATE_S = 10.0  # over which the drain rate is taken
MOST_WAIT_S = 60
DEFAULTS = Limits()
MOST_LINGERING = 64  # refused connections that get their answer; others are cut off


class Connection(Protocol):
    """A client's connection.

    Attributes:
        due_s: When it has to be looked at, by the loop's clock.
        heard_s: When its last byte came.
    """

    due_s: float
    heard_s: float

    @property
    def receiving_bytes(self) -> int:
        """Bytes of a body that is not whole."""

    def time_out(self) -> None:
        """Act on `due_s`, which has passed."""

    def give_way(self) -> None:
        """Close, as others need the room."""


class Intake:
    """Counts what the connections of one process hold, and watches their clocks.

    All methods belong to the event loop's thread. A connection adds to `held_bytes` and `idle`
    itself, for that happens with every request.

    Args:
        limits: The bounds.
        refusals: Records refusals.
        clock: Seconds, monotonic; of the rate at which bytes drain.

    Attributes:
        held_bytes: Of bodies that are coming in or unanswered, and of requests that wait.
        drained_bytes: Of bodies that were answered, ever.
        idle: Connections before their first request or between two; the one that has waited longest
            is the first.
        next_look_s: When the connections are next looked at, by the loop's clock.
        newest_s: When the newest connection came, by this object's clock.
    """

    def __init__(
        self,
        limits: Limits = DEFAULTS,
        refusals: RefusalLog | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits
        self.refusals = refusals or RefusalLog()
        self.most_large = int(limits.max_held * (1 - SMALL_SHARE))
        self.held_bytes = self.drained_bytes = 0
        self.idle: dict[Connection, None] = {}
        self.next_look_s, self.newest_s = math.inf, -math.inf
        self._most_descriptors = descriptors_for(limits.max_connections) - SPARE_DESCRIPTORS // 2
        self._connections: set[Connection] = set()
        self._refused: set[Connection] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._clock = clock
        self._mark = (clock(), 0)  # when, and what had been drained by then
        self._prefix, self._numbers = os.urandom(8).hex(), itertools.count()

    def enter(self, connection: Connection, descriptor: int) -> ServeError | None:
        """Note a new connection; return why it is refused, if it is.

        Args:
            connection: The connection.
            descriptor: Its number. The kernel gives the smallest that is free, so a large one
                means that hardly any is left.
        """
        full, self.newest_s = None, self._clock()
        if descriptor >= self._most_descriptors:
            full = TooManyConnections("the server is out of file descriptors; try again")
            full.reason = "descriptors"
        elif len(self._connections) >= self.limits.max_connections:
            full = TooManyConnections(
                f"{self.limits.max_connections} connections are open, and that is the limit; try "
                f"again"
            )
        if full is None or self._evict_idle():
            self._connections.add(connection)
            self.idle[connection] = None
            return None
        full.headers["Retry-After"] = "1"
        self._refused.add(connection)
        return full

    def leave(self, connection: Connection) -> None:
        """Forget a connection that has ended."""
        self._connections.discard(connection)
        self._refused.discard(connection)
        self.idle.pop(connection, None)

    @property
    def may_linger(self) -> bool:
        """Whether a refused connection may stay until its client has read why."""
        return len(self._refused) <= MOST_LINGERING

    def look_at(self, due_s: float) -> None:
        """Look at the connections at a time, if not before."""
        if due_s >= self.next_look_s:
            return
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self.next_look_s = max(due_s, loop.time() + GAP_S)
        self._timer = loop.call_at(self.next_look_s, self._look)

    def _look(self) -> None:
        """Time out the connections whose time has come."""
        self._timer, self.next_look_s = None, math.inf
        now_s = asyncio.get_running_loop().time()
        due_s = math.inf
        for connection in (*self._connections, *self._refused):
            if connection.due_s <= now_s:
                connection.time_out()
            due_s = min(due_s, connection.due_s)
        self.look_at(due_s)

    def find_room(self, size: int, most: int) -> bool:
        """Whether so many more bytes may be held; bodies that have stalled give way.

        Args:
            size: The bytes.
            most: What may be held.
        """
        if self.held_bytes + size <= most:
            return True
        stale_s = asyncio.get_running_loop().time() - STALE_S
        stale = [
            each for each in self._connections if each.receiving_bytes and each.heard_s < stale_s
        ]
        for connection in sorted(stale, key=lambda each: -each.receiving_bytes):
            connection.give_way()
            if self.held_bytes + size <= most:
                return True
        return False

    def hold(self, size: int, of: int) -> None:
        """Count further bytes of a body; the caller gives them back, also after a refusal.

        Args:
            size: The bytes.
            of: What is held of that body by then, on which its room depends.

        Raises:
            BytesFull: If there is no room.
        """
        self.held_bytes += size
        most = self.most_large if of > SMALL_BODY_BYTES else self.limits.max_held
        if self.held_bytes > most and not self.find_room(0, most):
            raise self.bytes_full(most)

    def bytes_full(self, most: int) -> ServeError:
        """The refusal of a body for which there is no room.

        Args:
            most: What may be held by bodies of its size and all smaller ones.
        """
        wait_s = self.retry_after_s()
        return BytesFull(
            f"{self.held_bytes / 2**20:.0f} MiB of request bodies are in flight, and the limit for "
            f"one of this size is {most / 2**20:.0f} MiB; try again in {wait_s} s",
            {"Retry-After": str(wait_s)},
        )

    def retry_after_s(self) -> int:
        """Seconds until the bytes that are held have drained at the recent rate, 1 to 60.

        Bodies that never become whole are given up after `body_s`.
        """
        now_s = self._clock()
        since_s, before = self._mark
        drained = self.drained_bytes - before
        wait_s = self.limits.body_s
        if drained:
            wait_s = min(wait_s, self.held_bytes * (now_s - since_s) / drained)
        if now_s - since_s > RATE_S:
            self._mark = now_s, self.drained_bytes
        return min(max(math.ceil(wait_s), 1), MOST_WAIT_S)

    def make_id(self) -> str:
        """An id for a request that is refused; drawing each from the kernel would cost more."""
        return f"{self._prefix}{next(self._numbers):016x}"

    def _evict_idle(self) -> bool:
        """Close the connection that has been idle longest, if any has been for a while."""
        oldest = next(iter(self.idle), None)
        if oldest is None or oldest.heard_s > asyncio.get_running_loop().time() - IDLE_S:
            return False
        sentence = "an idle connection is closed for a new one; see --max-connections"
        self.refusals.record("idle", sentence)
        self.leave(oldest)
        oldest.give_way()
        return True


def descriptors_for(connections: int) -> int:
    """Raise the limit of this process to what connections need, if it may; return the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + 2 * SPARE_DESCRIPTORS
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return soft if soft != resource.RLIM_INFINITY else wanted
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    except (OSError, ValueError):
        limit = soft
    if limit < wanted:
        log.warning(
            "%d file descriptors are fewer than %d connections need; raise `ulimit -n`",
            limit,
            connections,
        )
    return limit
