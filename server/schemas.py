"""Requests and responses as pydantic models, which also make the OpenAPI page."""

import math
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from server.json_body import MOST_ITEMS
from server.spelling import field_hint

LEAST_BUDGET_MS = 1e-6  # a nanosecond, which no clock here resolves
Budget = Annotated[float, Field(ge=LEAST_BUDGET_MS, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]


def _text(given: object) -> str:
    """A text, also one that is no valid Unicode: a list's other items have nothing to do with it.

    Of pydantic's own `str` it would spoil the whole body.
    """
    if isinstance(given, str):
        return given
    raise PydanticCustomError("string_type", "Input should be a valid string")


Text = Annotated[str, PlainValidator(_text, json_schema_input_type=str)]
Items = Annotated[list[Text], Field(min_length=1, max_length=MOST_ITEMS, fail_fast=True)]


class KnownFields(BaseModel):
    """Refuses an unknown field by the first one; a hostile body may hold thousands."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _no_unknown(cls, given: object) -> object:
        if isinstance(given, dict):
            for name in given:
                if name not in cls.model_fields:
                    hint = field_hint(str(name), cls.model_fields)
                    raise ValueError(f"unknown field {name!r:.80}{hint}")
        return given


class Options(KnownFields):
    """Options of a prediction request, in the query, the form or the JSON body."""

    model: str | None = Field(
        None,
        description="name of a loaded model, or NAME@VERSION; needed only if several read this "
        "input",
    )
    version: str | None = Field(
        None, description="version of the model; default: the latest that is loaded"
    )
    budget_ms: Budget | None = Field(None, description="mean-latency budget of this request alone")
    deadline_ms: Positive | None = Field(
        None, description="hard limit, counted from the request's headers"
    )
    top_k: int = Field(5, ge=1, le=1000, description="classes to list")
    trace: bool = Field(False, description="include the output of every exit that was run")
    priority: int = Field(1, ge=0, le=3, description="0 goes first")
    raw_scores: bool = Field(False, description="include the logits of all classes")


class PredictBody(Options):
    """A prediction request in JSON: one image in base64 or one text, or a list of either."""

    model_config = ConfigDict(strict=True)

    image: Text | None = None
    images: Items | None = None
    text: Text | None = None
    texts: Items | None = None
    text_pair: Text | None = Field(
        None, description="second text, for a model that reads pairs of texts"
    )
    text_pairs: Items | None = Field(None, description="second texts of `texts`, one for each")

    @model_validator(mode="after")
    def _one_input(self) -> "PredictBody":
        given = [
            name for name in ("image", "images", "text", "texts") if getattr(self, name) is not None
        ]
        if len(given) != 1:
            found = f"got {' and '.join(given)}" if given else "got none"
            raise ValueError(f"give exactly one of image, images, text and texts; {found}")
        if self.text_pair is not None and self.text is None:
            raise ValueError("text_pair is the second of two texts; give the first as text")
        if self.text_pairs is not None and len(self.text_pairs) != len(self.texts or ()):
            raise ValueError(
                f"there are {len(self.text_pairs)} text_pairs and {len(self.texts or ())} texts; "
                f"give one for each"
            )
        return self

    @property
    def pairs(self) -> list[tuple[str, str]] | None:
        """The inputs as pairs of texts; None if they are not pairs."""
        if self.text is not None and self.text_pair is not None:
            return [(self.text, self.text_pair)]
        if self.texts is not None and self.text_pairs is not None:
            return list(zip(self.texts, self.text_pairs, strict=True))
        return None

    @property
    def items(self) -> tuple[list[str], bool]:
        """The inputs, and whether they came as a list."""
        given = self.images if self.images is not None else self.texts
        one = self.image if self.image is not None else self.text
        return ([one or ""], False) if given is None else (given, True)


class ClassProbability(BaseModel):
    """A class of the ranking and its probability."""

    label: str
    class_id: int
    probability: float


class LatencyMs(BaseModel):
    """Latency by phase; `total` runs from headers received to response ready."""

    total: float
    queue: float
    decode: float
    compute: float


class TraceStep(BaseModel):
    """Output of one exit; `threshold` is null where none applies."""

    exit: int
    label: str
    confidence: float
    score: float
    threshold: float | None
    elapsed_ms: float


class LabelSetStep(BaseModel):
    """Output of one exit of a model whose samples may have several labels."""

    exit: int
    labels: list[ClassProbability]
    confidence: float
    score: float
    threshold: float | None
    elapsed_ms: float


class LabelSetPrediction(BaseModel):
    """Prediction of one sample that may have several labels, by a model of such samples.

    `labels` are those above their thresholds, which are fitted for each class; `top_k` has the
    likeliest classes in any case.
    """

    model: str
    version: str
    labels: list[ClassProbability]
    confidence: float
    exit: int
    num_exits: int
    top_k: list[ClassProbability]
    latency_ms: LatencyMs
    request_id: str
    trace: list[LabelSetStep] | None = None
    truncated: bool | None = None
    deadline_exceeded: bool | None = None


class Prediction(BaseModel):
    """Prediction of one sample; the fields after `request_id` appear where they apply.

    For a segmentation, probabilities are the classes' shares of the image, and `mask` is a PNG of
    the image's size in base64 whose pixel values are class ids.
    """

    model: str
    version: str
    label: str
    class_id: int
    confidence: float
    exit: int
    num_exits: int
    top_k: list[ClassProbability]
    latency_ms: LatencyMs
    request_id: str
    trace: list[TraceStep] | None = None
    mask: str | None = None
    truncated: bool | None = None
    unknown_tokens: float | None = None
    deadline_exceeded: bool | None = None
    logits: list[float] | None = None


class Problem(BaseModel):
    """An error (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    error: str


class ItemError(BaseModel):
    """A list item that failed; the other items still get predictions."""

    error: Problem


class Predictions(BaseModel):
    """Predictions in the order of the items."""

    predictions: list[Prediction | LabelSetPrediction | ItemError]


class BudgetChange(KnownFields):
    """A change of the budget or the promise: any of the fields."""

    model_config = ConfigDict(strict=True)

    budget_ms: Budget | None = Field(None, description="mean latency per sample, in milliseconds")
    measure: Literal["compute", "end_to_end"] | None = Field(
        None, description="latency that the budget applies to"
    )

    max_disagreement: Share | None = Field(
        None,
        description="without a budget, largest share of samples that get another answer than from "
        "the whole network; 0: every sample runs to the last exit",
    )

    @model_validator(mode="after")
    def _something(self) -> "BudgetChange":
        if not self.model_fields_set:
            raise ValueError("give budget_ms, measure or max_disagreement; the change is empty")
        if "measure" in self.model_fields_set and self.measure is None:
            raise ValueError("measure is null; give compute or end_to_end")
        if "max_disagreement" in self.model_fields_set and self.max_disagreement is None:
            raise ValueError("max_disagreement is null; give a share such as 0.01, or 0")
        return self


class ReloadRequest(KnownFields):
    """Body of a reload; it may be left out."""

    model_config = ConfigDict(strict=True)

    policy: str | None = Field(
        None,
        description="scheduler of the bundle to serve; default: the one that --policy or an "
        "earlier reload named, else the one that the bundle names",
    )


class FeedbackGiven(KnownFields):
    """The true label of an earlier prediction."""

    model_config = ConfigDict(strict=True)

    request_id: str = Field(description="id of the prediction; of an item of a list ID/0, ID/1 ...")
    label: str | int = Field(description="name or id of the class")


class FeedbackTaken(BaseModel):
    """Result of a feedback."""

    model: str
    exit: int
    correct: bool


class ModelQuery(KnownFields):
    """Query of the routes that concern models."""

    model: str | None = Field(None, description="name of a loaded model, or NAME@VERSION")


class Certified(BaseModel):
    """A certificate; `cost_ms` is the expected cost in this host's present milliseconds."""

    epsilon: float
    confidence: float
    rows: int
    bound: float
    cost_ms: float


class OfModel(BaseModel):
    """What concerns one model; `version` is there if the server may have several of a model."""

    model: str
    version: str | None = None

    @model_serializer(mode="wrap")
    def _without_version(self, handler: SerializerFunctionWrapHandler):  # type: ignore[no-untyped-def]
        """Leave an unknown version out; an annotation here would replace the documented fields."""
        fields = handler(self)
        if fields["version"] is None:
            del fields["version"]
        return fields


class BudgetState(OfModel):
    """Budget of one model and how it is kept; docs/http.md describes the fields."""

    policy: str
    budget_ms: float | None
    measure: str
    effective_budget_ms: float | None
    parameter: float
    rolling_latency_ms: float | None
    window: int
    samples: int
    floor_ms: float
    ceiling_ms: float
    feasible: bool
    reason: str | None
    promise: Literal["budget", "disagreement", "none"]
    summary: str
    max_disagreement: float
    certified: Certified | None
    min_agreement: float | None
    agreement: float | None
    yields: Literal["budget", "agreement"] | None
    expected_accuracy: float
    expected_exit_rates: list[float]
    exit_rates: list[float] | None
    thresholds: list[float | None]


class Budgets(BaseModel):
    """Budgets of the selected models."""

    models: list[BudgetState]


class Reloaded(OfModel):
    """A model's scheduler after a reload; `sha256` is the hash of its `scheduler.npz`."""

    policy: str
    sha256: str


class Reloads(BaseModel):
    """Schedulers of the selected models."""

    models: list[Reloaded]


class AuditExit(BaseModel):
    """Quality of one exit's predictions; null where it is unknown."""

    exit: int
    samples: int
    agreement: float | None
    agreement_ci95: tuple[float, float] | None
    score_drift: float | None
    feedback_samples: int
    feedback_accuracy: float | None
    feedback_accuracy_ci95: tuple[float, float] | None


class AuditState(OfModel):
    """Agreement of a model's early exits with its last; docs/http.md describes the fields."""

    policy: str
    share: float
    samples: int
    skipped: int
    lost: int
    agreement: float | None
    agreement_ci95: tuple[float, float] | None
    exits: list[AuditExit]


class Audits(BaseModel):
    """Audits of the selected models."""

    models: list[AuditState]


class FrontierEntry(BaseModel):
    """A budget and the results to expect under it, in this host's milliseconds."""

    budget_ms: float
    parameter: float
    expected_accuracy: float
    expected_cost_ms: float
    exit_rates: list[float]


def shown_threshold(value: float, *, last: bool) -> float | None:
    """A threshold in JSON: None if it never fires or is the last, 0 if it always fires."""
    if last or value == math.inf:
        return None
    return 0.0 if value == -math.inf else value
