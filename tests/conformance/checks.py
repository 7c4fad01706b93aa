"""What a check is, and how one is run and judged."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from tests.conformance.prober import Seen, watch
from tests.conformance.target import Target, ask, memory_mib

SLOW_MS = 300.0  # beyond the slowest answer of the quiet second before
RETRY_BELOW_MS = 3 * SLOW_MS  # a miss by times alone is tried once more: machines are noisy
GROWTH_MIB, LEAK_MIB = 300.0, 100.0
REFUSED = frozenset(
    {"400", "404", "405", "408", "411", "413", "414", "415", "422", "429", "431", "501", "503"}
) | {"closed"}


class Figures(NamedTuple):
    """What a check counted.

    Attributes:
        sent: Requests, connections or changes that it sent.
        lost: Those that had no answer where they should have had one.
        wrong: Answers that were not right.
        note: More, for people.
    """

    sent: int
    lost: int = 0
    wrong: int = 0
    note: str = ""


class Check(NamedTuple):
    """A check: its docstring says what it proves.

    Attributes:
        run: Does it; raises AssertionError if the server falls.
        probed: Whether honest clients are watched meanwhile.
        growth_mib: Memory that it may cost; known only with a pid.
        needs_pid: Whether it does something to the server's processes.
        processes: Whether it is about a server of several processes.
    """

    run: Callable[[Target], Figures]
    probed: bool = True
    growth_mib: float = GROWTH_MIB
    needs_pid: bool = False
    processes: bool = False

    @property
    def name(self) -> str:
        return self.run.__name__

    @property
    def proves(self) -> str:
        return (self.run.__doc__ or "").strip().partition("\n")[0]


def outcomes(seen: Counter[str], right: Iterable[str] = REFUSED, lost: int = 0) -> Figures:
    """Figures of outcomes, of which only `right` are."""
    wrong = {outcome: count for outcome, count in seen.items() if outcome not in set(right)}
    assert not wrong, f"answered {wrong}"
    listed = ", ".join(f"{outcome} x{count}" for outcome, count in seen.most_common(4))
    return Figures(seen.total(), lost, 0, listed)


def perform(check: Check, target: Target) -> Figures:
    """Run a check, and once more if it missed by times alone.

    Raises:
        AssertionError: If the server falls; the message says how.
    """
    if not check.probed:
        return check.run(target)
    figures, faults, late_ms = _watched(check, target)
    if faults and late_ms < RETRY_BELOW_MS and all(" ms" in fault for fault in faults):
        figures, faults, _ = _watched(check, target)
    assert not faults, "; ".join(faults)
    return figures


def _watched(check: Check, target: Target) -> tuple[Figures, list[str], float]:
    await_answer(target)
    prober, peak, stop = watch(target), [0.0], threading.Event()

    def measure() -> None:
        while not stop.wait(0.1):
            peak[0] = max(peak[0], memory_mib(target.pid))

    measuring = threading.Thread(target=measure)
    measuring.start()
    try:
        figures = check.run(target)
        time.sleep(0.3)
    finally:
        stop.set()
        measuring.join()
        seen = prober.end(peak[0])
    note = f"{figures.note}; others at most {seen.image_ms:.0f} ms, probes {seen.probe_ms:.0f} ms"
    if target.pid is not None:
        note += f", +{seen.grown_mib:.0f} MiB"
    return figures._replace(note=note), faults_of(check, seen), max(seen.image_ms, seen.probe_ms)


def faults_of(check: Check, seen: Seen) -> list[str]:
    """What of the bar was missed."""
    limit = SLOW_MS + seen.quiet_ms
    faults = [f"an image took {seen.image_ms:.0f} ms"] if seen.image_ms > limit else []
    faults += [f"a probe took {seen.probe_ms:.0f} ms"] if seen.probe_ms > limit else []
    faults += [f"others were answered {seen.failed}"] if seen.failed else []
    if seen.grown_mib > check.growth_mib:
        faults.append(f"memory grew by {seen.grown_mib:.0f} MiB")
    return faults


def await_answer(target: Target, patience_s: float = 30.0) -> None:
    """Wait until the server answers again."""
    ends_s = time.monotonic() + patience_s
    while ask(target, "GET", target.probe).status != "200":
        assert time.monotonic() < ends_s, "the server does not answer any more"
        time.sleep(0.1)
