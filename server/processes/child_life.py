"""When a child is suspect, killed, started again or given up: time logic without processes."""

from dataclasses import dataclass
from enum import Enum, auto


@dataclass(frozen=True)
class LifeLimits:
    """How long control waits for a child.

    Attributes:
        suspect_s: Silence of a ready child after which it is suspect.
        kill_s: Silence of a ready child after which it is killed.
        start_s: What a child may take to become ready before it is killed.
        first_backoff_s: Between the second death in a row and the start after it; the first is
            followed at once, and each further one after twice the time.
        max_backoff_s: The longest such time.
        stable_s: Deaths before it count no more once a child has been ready for so long.
        max_failed_starts: How many starts a child has to become ready for the first time.
    """

    suspect_s: float = 1.0
    kill_s: float = 10.0
    start_s: float = 120.0
    first_backoff_s: float = 0.5
    max_backoff_s: float = 30.0
    stable_s: float = 60.0
    max_failed_starts: int = 3


class Action(Enum):
    """What is to be done about a child."""

    START = auto()
    SUSPECT = auto()
    KILL = auto()
    GIVE_UP = auto()


class _Phase(Enum):
    WAITING = auto()  # for its start
    STARTING = auto()  # until it is ready
    READY = auto()
    KILLED = auto()  # until it has ended
    FAILED = auto()  # at each of its starts
    DOWN = auto()  # for good


class ChildLife:
    """The life of one child over all its starts.

    Args:
        limits: How long control waits.
        now_s: The present; the child is to be started at once.
    """

    def __init__(self, limits: LifeLimits, now_s: float) -> None:
        self._limits = limits
        self._phase = _Phase.WAITING
        self._start_at_s = now_s
        self._last_sign_s = now_s  # its start, then its readiness, then its last heartbeat
        self._suspect = False
        self._ready_at_s: float | None = None
        self._was_ever_ready = False
        self._starts = 0
        self._delay_s = 0.0  # after the next death

    def next_action(self, now_s: float) -> Action | None:
        """Return what is due and count it as done; each is returned once."""
        silent_s = self.silent_s(now_s)
        match self._phase:
            case _Phase.WAITING if now_s >= self._start_at_s:
                self._begin(now_s)
                return Action.START
            case _Phase.STARTING if silent_s >= self._limits.start_s:
                self._phase = _Phase.KILLED
                return Action.KILL
            case _Phase.READY if silent_s >= self._limits.suspect_s and not self._suspect:
                self._suspect = True
                return Action.SUSPECT
            case _Phase.READY if silent_s >= self._limits.kill_s:
                self._phase = _Phase.KILLED
                return Action.KILL
            case _Phase.FAILED:
                self._phase = _Phase.DOWN
                return Action.GIVE_UP
        return None

    def ready(self, now_s: float) -> None:
        """Note that the child has started up; heartbeats are expected from now on."""
        if self._phase is _Phase.STARTING:
            self._phase = _Phase.READY
            self._last_sign_s = self._ready_at_s = now_s
            self._was_ever_ready = True

    def beat(self, now_s: float) -> bool:
        """Note a sign of life; True if the child was suspect and is no more."""
        if self._phase is not _Phase.READY:
            return False
        self._last_sign_s = now_s
        recovered, self._suspect = self._suspect, False
        return recovered

    def silent_s(self, now_s: float) -> float:
        """Return the time since its start, its readiness or its last heartbeat."""
        return now_s - self._last_sign_s

    def excuse(self, pause_s: float, now_s: float) -> None:
        """Leave out a pause of control itself, in which no heartbeat could be read."""
        self._last_sign_s = min(now_s, self._last_sign_s + pause_s)

    def ended(self, now_s: float) -> float | None:
        """Note the child's death, or that its start failed.

        Returns:
            Seconds to the next start; None if there is none.
        """
        if self._ready_at_s is not None and now_s - self._ready_at_s >= self._limits.stable_s:
            self._delay_s = 0.0
        if not self._was_ever_ready and self._starts >= self._limits.max_failed_starts:
            self._phase = _Phase.FAILED
            return None
        delay_s = self._delay_s
        self._phase, self._start_at_s = _Phase.WAITING, now_s + delay_s
        longer_s = max(2 * delay_s, self._limits.first_backoff_s)
        self._delay_s = min(longer_s, self._limits.max_backoff_s)
        return delay_s

    def _begin(self, now_s: float) -> None:
        self._phase = _Phase.STARTING
        self._last_sign_s, self._ready_at_s, self._suspect = now_s, None, False
        self._starts += 1
