"""What the server answers. Fields that a later server adds are in `raw`."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ClassProbability:
    """A class of the ranking and its probability."""

    label: str
    class_id: int
    probability: float


@dataclass(frozen=True, slots=True)
class LatencyMs:
    """Latency on the server by phase; `total` runs from headers received to answer ready."""

    total: float
    queue: float
    decode: float
    compute: float


@dataclass(frozen=True, slots=True)
class ExitOutput:
    """Output of one exit.

    Attributes:
        exit: Its number, from 0.
        label: The class that it would answer.
        confidence: The probability of that class.
        score: The policy's score, compared with the threshold.
        threshold: None where the exit never fires, and at the last exit.
        elapsed_ms: Compute time up to this exit.
    """

    exit: int
    label: str
    confidence: float
    score: float
    threshold: float | None
    elapsed_ms: float

    @classmethod
    def parse(cls, given: Json) -> "ExitOutput":
        """Read it from JSON."""
        return cls(**{name: given[name] for name in cls.__slots__})


@dataclass(frozen=True, slots=True)
class Prediction:
    """Prediction of one sample.

    Attributes:
        model: The model that answered.
        version: Its version.
        label: The most probable class.
        class_id: Its number.
        confidence: Its probability.
        exit: The exit at which the sample left, from 0.
        num_exits: Number of exits.
        top_k: The most probable classes.
        latency_ms: Latency on the server.
        request_id: For feedback and the server's log.
        trace: Output of every exit that the sample passed, if it was asked for.
        mask: Of a segmentation: a PNG of the image's size, whose pixel values are class ids.
        truncated: Whether the text was cut at the model's limit.
        deadline_exceeded: Whether the answer was ready after the deadline.
        raw: The JSON object.
    """

    model: str
    version: str
    label: str
    class_id: int
    confidence: float
    exit: int
    num_exits: int
    top_k: tuple[ClassProbability, ...]
    latency_ms: LatencyMs
    request_id: str
    trace: tuple[ExitOutput, ...] | None = None
    mask: bytes | None = field(default=None, repr=False)
    truncated: bool = False
    deadline_exceeded: bool = False
    raw: Json = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def parse(cls, given: Json) -> "Prediction":
        """Read it from JSON."""
        times = given["latency_ms"]
        trace, mask = given.get("trace"), given.get("mask")
        return cls(
            **{name: given[name] for name in _PLAIN},
            top_k=tuple(
                ClassProbability(each["label"], each["class_id"], each["probability"])
                for each in given["top_k"]
            ),
            latency_ms=LatencyMs(**{name: times[name] for name in LatencyMs.__slots__}),
            trace=None if trace is None else tuple(map(ExitOutput.parse, trace)),
            mask=None if mask is None else base64.b64decode(mask),
            truncated=given.get("truncated", False),
            deadline_exceeded=given.get("deadline_exceeded", False),
            raw=given,
        )


_PLAIN = ("model", "version", "label", "class_id", "confidence", "exit", "num_exits", "request_id")


@dataclass(frozen=True, slots=True)
class ItemError:
    """An item of a list that failed; the other items still have predictions.

    Attributes:
        status: The status that the item alone would have got.
        code: The kind of error, for scripts.
        detail: The server's sentence.
        request_id: The item's id.
    """

    status: int
    code: str
    detail: str
    request_id: str

    @classmethod
    def parse(cls, given: Json) -> "ItemError":
        """Read it from JSON."""
        return cls(**{name: given[name] for name in cls.__slots__})


@dataclass(frozen=True, slots=True)
class Certificate:
    """What is certified of a model's early exits.

    Attributes:
        epsilon: The promised largest share of samples that get another answer than from the whole
            network.
        confidence: Of the certificate.
        rows: Calibration rows that it rests on.
        bound: Upper bound of the true share.
        cost_ms: Expected cost of a sample.
    """

    epsilon: float
    confidence: float
    rows: int
    bound: float
    cost_ms: float


@dataclass(frozen=True, slots=True)
class Budget:
    """Budget or promise of one model, and how it is kept.

    Attributes:
        model: The model.
        policy: Its exit policy in force.
        budget_ms: The budget; None: the promise about answers is in command.
        measure: The latency that the budget limits.
        effective_budget_ms: What the controller aims at now.
        rolling_latency_ms: Mean latency over the window; None before the first sample.
        feasible: Whether the budget can be kept.
        reason: Why not; None if it can.
        promise: What is in command.
        summary: One sentence on it.
        max_disagreement: The promised share.
        certified: The certificate in force.
        expected_accuracy: On the calibration set.
        exit_rates: Share of the window's samples that left at each exit; None before the first.
        raw: The JSON object, with all further fields.
    """

    model: str
    policy: str
    budget_ms: float | None
    measure: Literal["compute", "end_to_end"]
    effective_budget_ms: float | None
    rolling_latency_ms: float | None
    feasible: bool
    reason: str | None
    promise: str
    summary: str
    max_disagreement: float
    certified: Certificate | None
    expected_accuracy: float
    exit_rates: tuple[float, ...] | None
    raw: Json = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def parse(cls, given: Json) -> "Budget":
        """Read it from JSON."""
        fields: dict[str, Any] = {
            name: given[name] for name in cls.__slots__ if name not in ("certified", "raw")
        }
        certified, rates = given["certified"], given["exit_rates"]
        if certified is not None:
            certified = Certificate(**{name: certified[name] for name in Certificate.__slots__})
        fields["exit_rates"] = None if rates is None else tuple(rates)
        return cls(certified=certified, raw=given, **fields)


@dataclass(frozen=True, slots=True)
class FeedbackTaken:
    """Result of a feedback.

    Attributes:
        model: The model that had answered.
        exit: The exit at which the sample had left.
        correct: Whether its answer was the true label.
    """

    model: str
    exit: int
    correct: bool

    @classmethod
    def parse(cls, given: Json) -> "FeedbackTaken":
        """Read it from JSON."""
        return cls(given["model"], given["exit"], given["correct"])


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded model.

    Attributes:
        name: For the option `model`.
        version: Its version.
        task: Such as `image` or `text`.
        inputs: What it reads.
        classes: Names of the classes, by their number.
        num_exits: Number of exits.
        policy: Its exit policy in force.
        promise: What is in command.
        summary: One sentence on it.
        raw: The JSON object, with all further fields.
    """

    name: str
    version: str
    task: str
    inputs: tuple[str, ...]
    classes: tuple[str, ...]
    num_exits: int
    policy: str
    promise: str
    summary: str
    raw: Json = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def parse(cls, given: Json) -> "Model":
        """Read it from JSON."""
        plain = ("version", "task", "num_exits", "policy", "promise", "summary")
        return cls(
            name=given["model"],
            inputs=tuple(given["inputs"]),
            classes=tuple(given["classes"]),
            raw=given,
            **{name: given[name] for name in plain},
        )


@dataclass(frozen=True, slots=True)
class Health:
    """Whether the server is live or ready; true as a condition if it is.

    Attributes:
        ok: Whether it is.
        reason: Why not; None if it is.
    """

    ok: bool
    reason: str | None

    def __bool__(self) -> bool:
        return self.ok
