"""Bodies and answers in the shapes of other servers, as pydantic models."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, WithJsonSchema

from server.schemas import ItemError, Options, Prediction


class HuggingFaceBody(Options):
    """`inputs` of Hugging Face's inference endpoints: a text, an image in base64, or a list."""

    inputs: Any
    parameters: dict[str, Any] | None = Field(
        None, description="top_k, function_to_apply, raw_scores, or any option"
    )
    options: dict[str, Any] | None = Field(None, description="use_cache, wait_for_model: no effect")
    truncate: bool = Field(True, description="no effect: long texts are always cut")
    truncation_direction: Annotated[
        Literal["right", "Right"],
        WithJsonSchema({"type": "string", "const": "right"}),  # two that differ in case alone
    ] = Field("right", description="no effect: texts are cut at their end")


class HuggingFaceParameters(Options):
    """`parameters` of a Hugging Face body."""

    top_k: int | None = Field(None, ge=1, le=1000)  # type: ignore[assignment]
    function_to_apply: Literal["softmax", "none"] | None = None


class LabelScore(BaseModel):
    """A class and its probability, or its logit where raw scores were asked for."""

    label: str
    score: float


class KServeBody(Options):
    """`instances` of KServe's first protocol, which is TensorFlow Serving's."""

    instances: list[Any]
    parameters: dict[str, Any] | None = Field(None, description="any option")
    signature_name: str | None = Field(None, description="no effect")


class KServePredictions(BaseModel):
    """Predictions in the order of the instances."""

    predictions: list[Prediction | ItemError]


class KServeModel(BaseModel):
    """Whether a model takes requests."""

    name: str
    ready: bool


class KServeModels(BaseModel):
    """Names of the loaded models."""

    models: list[str]


class ClassifyBody(Options):
    """`input` of vLLM's classification: a text, an image in base64, or a list."""

    input: Any
    truncate_prompt_tokens: int | None = Field(
        None, description="no effect: texts are cut at the model's limit"
    )
    user: str | None = Field(None, description="no effect")


class Classified(BaseModel):
    """One item: its class and the probabilities of all classes."""

    index: int
    label: str
    probs: list[float]
    num_classes: int
    logits: list[float] | None = None


class ClassifyError(ItemError):
    """An item that failed."""

    index: int


class Usage(BaseModel):
    """Tokens that were read."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int
    prompt_tokens_details: None


class Classification(BaseModel):
    """Answer of vLLM's shape; `id` is `classify-` and the request's id."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Classified | ClassifyError]
    usage: Usage


class ModelEntry(BaseModel):
    """A loaded model; docs/http.md describes the fields."""

    model: str
    version: str
    task: str
    inputs: list[str]
    classes: list[str]
    num_exits: int
    precision: str
    device: str
    policy: str
    promise: Literal["budget", "disagreement", "none"]
    summary: str
    budget_ms: float | None
    max_disagreement: float


class ModelList(BaseModel):
    """The loaded models."""

    models: list[ModelEntry]
