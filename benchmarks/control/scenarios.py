"""What a budget has to be held through: one list, for the simulated plant and the real server."""

from dataclasses import dataclass, replace
from typing import Literal

Measure = Literal["compute", "end_to_end"]

WINDOW = 1000  # samples
SETTLING = 300  # samples beyond a window, in which a change has to be over
LOOSE, TIGHT, MIDDLE = 0.8, 0.3, 0.55  # of the way from floor to ceiling
SLOWDOWN, SLOW_S = 1.6, 30.0
BURST = 4.0
ALTERNATING_S = 5.0
SEVERITIES = (1, 3, 5)
SPOILT_IMAGES = ("noise", "blur", "jpeg", "contrast")
OTHER_TEXTS = ("longer-3", "shorter-8", "misspelt-30")
FEW_PER_S, MANY_PER_S = 1.0, 1000.0


@dataclass(frozen=True)
class Phase:
    """A spell in which nothing changes.

    Attributes:
        samples: About how many come.
        rate_per_s: How many a second, at random times.
        budget: Where it lies on the way from floor to ceiling, as of the scenario's begin.
        inputs: The form in which samples come (`profiling.loadtest.variants`).
        classes: Only samples of these classes come; None: of all.
        slowdown: The host takes so many times as long.
    """

    samples: float
    rate_per_s: float
    budget: float = MIDDLE
    inputs: str = "clean"
    classes: tuple[int, ...] | None = None
    slowdown: float = 1.0

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return self.samples / self.rate_per_s


@dataclass(frozen=True)
class Scenario:
    """Phases one after the other, and which latency the budget is about.

    Attributes:
        name: For tables.
        phases: At least one; figures of a scenario leave the first window of the first one out.
        measure: Of the budget.
        drifts: Whether inputs come in other forms than the policy was fitted to.
    """

    name: str
    phases: tuple[Phase, ...]
    measure: Measure = "compute"
    drifts: bool = False

    @property
    def begins_s(self) -> list[float]:
        """When each phase begins."""
        begins = [0.0]
        for phase in self.phases[:-1]:
            begins.append(begins[-1] + phase.seconds)
        return begins

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return sum(phase.seconds for phase in self.phases)


def scenarios(rate_per_s: float, num_classes: int, *, texts: bool = False) -> list[Scenario]:
    """All of them.

    Args:
        rate_per_s: Of samples, where a scenario does not say otherwise; a burst of four times as
            many must be more than the host can run to the end.
        num_classes: C.
        texts: Whether inputs are texts, which drift otherwise than images.
    """
    calm = Phase(3000, rate_per_s)
    loose, tight = replace(calm, budget=LOOSE), replace(calm, budget=TIGHT)
    half = tuple(range(num_classes // 2))
    rest = tuple(range(num_classes // 2, num_classes))
    slow = replace(calm, samples=max(SLOW_S * rate_per_s, calm.samples), slowdown=SLOWDOWN)
    turns = ALTERNATING_S * rate_per_s
    drifts = _text_drifts(calm) if texts else _image_drifts(calm)
    return [
        Scenario("steady", (replace(calm, samples=12_000),)),
        Scenario("budget steps", (loose, tight, loose, tight)),
        Scenario(
            "alternating budgets",
            (calm, *(replace(each, samples=turns) for each in (loose, tight) * 6)),
        ),
        Scenario("slow host", (calm, slow, calm)),
        Scenario(
            "burst",
            (
                replace(calm, budget=1.0),
                Phase(6000, BURST * rate_per_s, 1.0),
                replace(calm, budget=1.0),
            ),
            measure="end_to_end",
        ),
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


def _image_drifts(calm: Phase) -> list[Scenario]:
    return [
        Scenario(
            kind,
            (calm, *(replace(calm, inputs=f"{kind}-{each}") for each in SEVERITIES), calm),
            drifts=True,
        )
        for kind in SPOILT_IMAGES
    ]


def _text_drifts(calm: Phase) -> list[Scenario]:
    return [
        Scenario(form.partition("-")[0], (calm, replace(calm, inputs=form), calm), drifts=True)
        for form in OTHER_TEXTS
    ]
