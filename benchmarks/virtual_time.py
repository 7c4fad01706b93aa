"""A clock that advances only while something sleeps, to replay a machine's work."""

import heapq
import itertools
from collections.abc import Callable


class VirtualTime:
    """A clock with actions that are due at given times; for one thread.

    When a fake device sleeps on it, all actions that are due meanwhile run.
    """

    def __init__(self) -> None:
        self._now_s = 0.0
        self._order = itertools.count()
        self._due: list[tuple[float, int, Callable[[], None]]] = []

    def clock(self) -> float:
        """Seconds since the start."""
        return self._now_s

    def at(self, when_s: float, action: Callable[[], None]) -> None:
        """Schedule an action; actions of the same time run in the order of scheduling."""
        heapq.heappush(self._due, (when_s, next(self._order), action))

    def sleep(self, seconds: float) -> None:
        """Let time pass, and run the actions that are due."""
        end_s = self._now_s + seconds
        while self._due and self._due[0][0] <= end_s:
            self.skip()
        self._now_s = end_s

    def skip(self) -> bool:
        """Advance to the next action and run it; return whether there was one."""
        if not self._due:
            return False
        when_s, _, action = heapq.heappop(self._due)
        self._now_s = max(self._now_s, when_s)
        action()
        return True
