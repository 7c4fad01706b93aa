"""What FastAPI cannot know of the operations: names, bodies, answers and examples."""

from typing import Any, Final, Literal, NamedTuple

from pydantic import BaseModel

from server.event_stream import EVENT_STREAM
from server.open_inference import BINARY
from server.openapi.tensor_schemas import (
    InferenceAnswer,
    InferenceRequestBody,
    LiveState,
    ModelMetadata,
    ModelReadyState,
    ReadyState,
    ServerMetadata,
    Statistics,
)
from server.protocol_schemas import HuggingFaceBody, LabelScore
from server.schemas import (
    ItemError,
    LabelSetPrediction,
    Options,
    PredictBody,
    Prediction,
    Predictions,
)

JSON: Final = "application/json"
TEXT_MODEL: Final = "ag-news-minilm"
SENTENCE: Final = "Oil prices fell below 50 dollars a barrel."
# A blue square of 8 by 8 pixels.
IMAGE: Final = (
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAFUlEQVR42mOUi1rAgA0wMeAAg1MCAN8WASjj1Ss4AAAA"
    "AElFTkSuQmCC"
)
EXAMPLE_ID: Final = "example-1"
_BYTES: Final = {"schema": {"type": "string", "format": "binary"}}
_TEXT: Final = {"schema": {"type": "string"}}
# OpenAPI 3.1 has no schemas of single events.
_EVENTS: Final[dict[str, Any]] = {EVENT_STREAM: {"schema": {}}}


class LiveProbe(BaseModel):
    """The answer of GET /livez while the server makes progress."""

    status: Literal["live"]


class ReadyProbe(BaseModel):
    """The answer of GET /readyz while the server takes requests."""

    status: Literal["ready"]


class Operation(NamedTuple):
    """What is known of an operation besides its route.

    Attributes:
        id: Its name in clients; None: the name of its function.
        body: The type of its JSON body; None: what the route says.
        answer: The type of its JSON answer; None: what the route says.
        media: Further media types of its answer, with their schemas.
        examples: JSON bodies that run as they are, by their summaries.
        form: A form that runs as it is.
        options: Options that it also takes in its query, where its route does not say so.
        query: Parameters of a query that runs as it is.
    """

    id: str | None = None
    body: Any = None
    answer: Any = None
    media: dict[str, Any] = {}  # noqa: RUF012 - never changed
    examples: dict[str, Any] = {}  # noqa: RUF012
    form: dict[str, str] | None = None
    options: tuple[str, ...] = ()
    query: dict[str, str] = {}  # noqa: RUF012


_OPTIONS: Final = tuple(
    name for name in Options.model_fields if name not in ("model", "version", "trace")
)
_MODEL: Final = {"model": TEXT_MODEL}
_TENSOR: Final = {
    "inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": [SENTENCE]}]
}
_INFER: Final = Operation(
    body=InferenceRequestBody,
    answer=InferenceAnswer,
    media={BINARY: _BYTES, **_EVENTS},
    options=_OPTIONS,
    examples={
        "a text": _TENSOR,
        "two texts, and one output": {
            "id": EXAMPLE_ID,
            "inputs": [{**_TENSOR["inputs"][0], "shape": [2], "data": [SENTENCE, "It won 3-1."]}],
            "outputs": [{"name": "label"}],
        },
        "an event at each exit": {**_TENSOR, "parameters": {"stream": True}},
    },
)
_KSERVE: Final = Operation(
    options=(*_OPTIONS, "trace"),
    examples={
        "two texts": {"instances": [SENTENCE, {"text": "It won 3-1."}]},
        "with options": {"instances": [SENTENCE], "parameters": {"top_k": 1}},
    },
)
_PREDICT_EXAMPLES: Final = {
    "a text": {"text": SENTENCE, "top_k": 2},
    "a list of texts": {"texts": [SENTENCE, "The striker scored twice."], "top_k": 1},
    "an image in base64": {"image": IMAGE, "top_k": 3},
}
OPERATIONS: Final[dict[tuple[str, str], Operation]] = {
    ("post", "/predict"): Operation(
        body=PredictBody | HuggingFaceBody,
        answer=Prediction | LabelSetPrediction | Predictions | list[list[LabelScore] | ItemError],
        examples={**_PREDICT_EXAMPLES, "as Hugging Face has it": {"inputs": SENTENCE}},
        form={"text": SENTENCE, "top_k": "1"},
    ),
    ("post", "/predict/stream"): Operation(
        body=PredictBody,
        media=_EVENTS,
        examples={"a text": {"text": SENTENCE, "top_k": 1}},
        form={"text": SENTENCE},
    ),
    ("post", "/classify"): Operation(
        options=("model", "version", *_OPTIONS),
        examples={"a text": {"input": SENTENCE}, "a list": {"input": [SENTENCE, "It won 3-1."]}},
    ),
    ("post", "/v1/models/{model}:predict"): _KSERVE._replace(id="kserve_predict"),
    ("post", "/v1/models/{model}/versions/{version}:predict"): _KSERVE._replace(
        id="kserve_predict_version"
    ),
    ("get", "/v1/models"): Operation(id="kserve_models"),
    ("get", "/v1/models/{model}"): Operation(id="kserve_model_ready"),
    ("get", "/v2"): Operation(answer=ServerMetadata),
    ("get", "/v2/health/live"): Operation(answer=LiveState),
    ("get", "/v2/health/ready"): Operation(answer=ReadyState),
    ("get", "/v2/models/stats"): Operation(answer=Statistics),
    ("get", "/v2/models/{model}"): Operation(answer=ModelMetadata),
    ("get", "/v2/models/{model}/versions/{version}"): Operation(answer=ModelMetadata),
    ("get", "/v2/models/{model}/ready"): Operation(answer=ModelReadyState),
    ("get", "/v2/models/{model}/versions/{version}/ready"): Operation(answer=ModelReadyState),
    ("get", "/v2/models/{model}/stats"): Operation(answer=Statistics),
    ("get", "/v2/models/{model}/versions/{version}/stats"): Operation(answer=Statistics),
    ("post", "/v2/models/{model}/infer"): _INFER,
    ("post", "/v2/models/{model}/versions/{version}/infer"): _INFER._replace(id="infer_version"),
    ("put", "/budget"): Operation(
        examples={
            "a budget": {"budget_ms": 2.5, "measure": "compute"},
            "a promise in its place": {"budget_ms": None, "max_disagreement": 0.01},
        }
    ),
    ("get", "/frontier"): Operation(query=_MODEL),
    ("get", "/audit/rows"): Operation(
        id="get_audit_rows", media={"application/octet-stream": _BYTES}, query=_MODEL
    ),
    ("post", "/v2/repository/index"): Operation(examples={"what is served": {"ready": True}}),
    ("post", "/v2/repository/models/{model}/load"): Operation(examples={"the folder's own": {}}),
    ("post", "/v2/repository/models/{model}/unload"): Operation(examples={"all versions": {}}),
    ("post", "/scheduler/reload"): Operation(examples={"the bundle's own": {}}),
    ("post", "/feedback"): Operation(
        id="give_feedback",
        examples={
            f"for a text that was sent with X-Request-ID: {EXAMPLE_ID}": {
                "request_id": EXAMPLE_ID,
                "label": "Business",
            }
        },
    ),
    ("get", "/livez"): Operation(answer=LiveProbe),
    ("get", "/readyz"): Operation(answer=ReadyProbe),
    ("get", "/metrics"): Operation(
        id="get_metrics", media={"text/plain": _TEXT, "application/openmetrics-text": _TEXT}
    ),
}
# Values that fill the paths of all examples.
PATH_EXAMPLES: Final = {"model": TEXT_MODEL, "version": "1"}
