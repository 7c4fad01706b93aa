"""Scenarios in which a budget must be held, for the simulated and the real server."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

Measure = Literal["compute", "end_to_end"]

WINDOW = 1000  # samples
SETTLING = 300  # samples beyond a window, within which a change must have settled
LOOSE, TIGHT, MIDDLE = 0.8, 0.3, 0.55  # position between floor and ceiling
SLOWDOWN, SLOW_S = 1.6, 30.0
BURST, STEEP_BURST = 4.0, 10.0
PULSE_S = 2.0  # of load, and of silence after it
PAUSE_PER_S = 1e-3  # as good as none; a load test takes no rate of 0
PRESENT_S = 0.5, 3.0  # shortest and longest time that neighbours compute or stay away
ALTERNATING_S = 5.0
SEVERITIES = (1, 3, 5)
CORRUPTED_IMAGES = ("noise", "blur", "jpeg", "contrast")
OTHER_TEXTS = ("longer-3", "shorter-8", "misspelt-30")
FEW_PER_S, MANY_PER_S = 1.0, 1000.0


@dataclass(frozen=True)
class Phase:
    """A period in which nothing changes.

    Attributes:
        samples: Expected number of samples.
        rate_per_s: Samples per second, at random times.
        budget: Its position between floor and ceiling, as of the scenario's start.
        inputs: Variant of the samples (`profiling.loadtest.variants`).
        classes: Classes of the samples; None: all.
        slowdown: Factor by which the host is slower.
        pulse_s: If set, requests come for so long at twice the rate, then none for as long.
        neighbours: Whether other processes come and go on the host.
    """

    samples: float
    rate_per_s: float
    budget: float = MIDDLE
    inputs: str = "clean"
    classes: tuple[int, ...] | None = None
    slowdown: float = 1.0
    pulse_s: float | None = None
    neighbours: bool = False

    @property
    def seconds(self) -> float:
        """Its duration."""
        return self.samples / self.rate_per_s

    def rates(self, begin_s: float) -> Iterator[tuple[float, float]]:
        """Yield the times at which the rate changes, and the new rate per second."""
        if self.pulse_s is None:
            yield begin_s, self.rate_per_s
            return
        for pulse in range(max(round(self.seconds / self.pulse_s / 2), 1)):
            at_s = begin_s + 2 * pulse * self.pulse_s
            yield at_s, 2 * self.rate_per_s
            yield at_s + self.pulse_s, PAUSE_PER_S

    def visits(self, seed: int) -> Iterator[tuple[float, float]]:
        """Yield when neighbours come and when they go, from the phase's begin on."""
        rng, at_s = np.random.default_rng(seed), 0.0
        while self.neighbours and at_s < self.seconds:
            come_s = at_s + float(rng.uniform(*PRESENT_S))
            at_s = come_s + float(rng.uniform(*PRESENT_S))
            yield come_s, at_s


@dataclass(frozen=True)
class Scenario:
    """Consecutive phases, and the latency that the budget is about.

    Attributes:
        name: Its name in tables.
        phases: At least one; the figures leave out the first window of the first phase.
        measure: Latency that the budget is about.
        drifts: Whether inputs differ from those that the policy was fitted to.
    """

    name: str
    phases: tuple[Phase, ...]
    measure: Measure = "compute"
    drifts: bool = False

    @property
    def begins_s(self) -> list[float]:
        """The time at which each phase begins."""
        begins = [0.0]
        for phase in self.phases[:-1]:
            begins.append(begins[-1] + phase.seconds)
        return begins

    @property
    def seconds(self) -> float:
        """Its duration."""
        return sum(phase.seconds for phase in self.phases)

    def shortened(self, samples: float) -> "Scenario":
        """The same scenario with at most this many samples per phase."""
        phases = [replace(each, samples=min(each.samples, samples)) for each in self.phases]
        return replace(self, phases=tuple(phases))


def scenarios(rate_per_s: float, num_classes: int, *, texts: bool = False) -> list[Scenario]:
    """Make all scenarios.

    Args:
        rate_per_s: Samples per second, unless a scenario says otherwise; a burst of four times as
            many must be more than the host can run to the end.
        num_classes: C.
        texts: Whether inputs are texts, which have other variants than images.
    """
    calm = Phase(3000, rate_per_s)
    loose, tight = replace(calm, budget=LOOSE), replace(calm, budget=TIGHT)
    half = tuple(range(num_classes // 2))
    rest = tuple(range(num_classes // 2, num_classes))
    # A middle budget is below the cost of exit 0 on the slow host where that exit is half the cost.
    slow = replace(loose, samples=max(SLOW_S * rate_per_s, calm.samples), slowdown=SLOWDOWN)
    turns = ALTERNATING_S * rate_per_s
    drifts = _text_drifts(calm) if texts else _image_drifts(calm)
    return [
        Scenario("steady", (replace(calm, samples=12_000),)),
        Scenario("budget steps", (loose, tight, loose, tight)),
        Scenario(
            "alternating budgets",
            (calm, *(replace(each, samples=turns) for each in (loose, tight) * 6)),
        ),
        Scenario("slow host", (loose, slow, loose)),
        _burst("burst", BURST, rate_per_s),
        # From fewer requests, so that the burst itself is what the other one is.
        _burst("steep burst", STEEP_BURST, BURST / STEEP_BURST * rate_per_s),
        Scenario(
            "on and off",
            (Phase(24_000, BURST / 2 * rate_per_s, 1.0, pulse_s=PULSE_S),),
            measure="end_to_end",
        ),
        Scenario("neighbours", (replace(loose, samples=24_000, neighbours=True),)),
        Scenario(
            "label mix",
            (calm, replace(calm, classes=half), replace(calm, classes=rest)),
            drifts=True,
        ),
        Scenario(
            "one class", (calm, replace(calm, classes=(min(3, num_classes - 1),))), drifts=True
        ),
        *drifts,
        Scenario(f"{FEW_PER_S:g}/s", (Phase(600, FEW_PER_S),)),
        Scenario(f"{MANY_PER_S:g}/s", (Phase(12_000, MANY_PER_S),)),
    ]


def _burst(name: str, times: float, rate_per_s: float) -> Scenario:
    calm = Phase(3000, rate_per_s, 1.0)
    burst = Phase(6000, times * rate_per_s, 1.0)
    return Scenario(name, (calm, burst, calm), measure="end_to_end")


def _image_drifts(calm: Phase) -> list[Scenario]:
    return [
        Scenario(
            kind,
            (calm, *(replace(calm, inputs=f"{kind}-{each}") for each in SEVERITIES), calm),
            drifts=True,
        )
        for kind in CORRUPTED_IMAGES
    ]


def _text_drifts(calm: Phase) -> list[Scenario]:
    return [
        Scenario(
            variant.partition("-")[0], (calm, replace(calm, inputs=variant), calm), drifts=True
        )
        for variant in OTHER_TEXTS
    ]
