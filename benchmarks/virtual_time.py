"""Time that passes only where something sleeps, so that what a machine does can be replayed."""

import heapq
import itertools
from collections.abc import Callable


class VirtualTime:
    """A clock, and what is to happen at given times; for one thread.

    A fake device that sleeps on it lets everything happen that is due meanwhile.
    """

    def __init__(self) -> None:
        self._now_s = 0.0
        self._order = itertools.count()
        self._due: list[tuple[float, int, Callable[[], None]]] = []

    def clock(self) -> float:
        """Seconds."""
        return self._now_s

    def at(self, when_s: float, action: Callable[[], None]) -> None:
        """Let something happen; of what is due at the same time, first what was told first."""
        heapq.heappush(self._due, (when_s, next(self._order), action))

    def sleep(self, seconds: float) -> None:
        """Let time pass, and happen what is due."""
        end_s = self._now_s + seconds
        while self._due and self._due[0][0] <= end_s:
            self.skip()
        self._now_s = end_s

    def skip(self) -> bool:
        """Go on to what is due next and let it happen; whether there was anything."""
        if not self._due:
            return False
        when_s, _, action = heapq.heappop(self._due)
        self._now_s = max(self._now_s, when_s)
        action()
        return True
