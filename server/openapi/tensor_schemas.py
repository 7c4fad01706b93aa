"""Bodies and answers of the Open Inference Protocol as pydantic models, for the document alone.

The routes read and write them by hand: tensors are too large for a model of each number.
"""

from typing import Any, Literal

from pydantic import BaseModel, Field

Datatype = Literal["BYTES", "FP32", "INT64", "UINT8"]


class LiveState(BaseModel):
    """The answer of a probe while the server makes progress."""

    live: bool


class ReadyState(BaseModel):
    """The answer of a probe while the server takes requests."""

    ready: bool


class ModelReadyState(ReadyState):
    """A model that takes requests."""

    name: str


class ServerMetadata(BaseModel):
    """Name and version of the server, and the extensions of the protocol that it has."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    """A tensor that a model takes or returns; -1 is any number of rows."""

    name: str
    datatype: Datatype
    shape: list[int]


class ModelMetadata(BaseModel):
    """Inputs and outputs of a model; a request has one of the inputs."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class InputTensor(BaseModel):
    """The tensor of a request; without `data` its bytes follow the JSON."""

    name: Literal["image", "text"]
    shape: list[int]
    datatype: Datatype
    parameters: dict[str, Any] | None = Field(None, description="binary_data_size")
    data: list[Any] | None = None


class RequestedOutput(BaseModel):
    """An output to return."""

    name: str
    parameters: dict[str, Any] | None = Field(None, description="binary_data, classification")


class InferenceRequestBody(BaseModel):
    """A request for inference: one tensor of N rows."""

    id: str | None = None
    parameters: dict[str, Any] | None = Field(
        None, description="binary_data_output, timeout in microseconds, or any option"
    )
    inputs: list[InputTensor] = Field(min_length=1, max_length=1)
    outputs: list[RequestedOutput] | None = None


class OutputTensor(BaseModel):
    """A tensor of an answer; with `binary_data_size` its bytes follow the JSON."""

    name: str
    datatype: Datatype
    shape: list[int]
    parameters: dict[str, Any] | None = None
    data: list[float | str] | None = None


class InferenceAnswer(BaseModel):
    """The outputs for the N rows of a request."""

    model_name: str
    model_version: str
    id: str
    outputs: list[OutputTensor]


class Duration(BaseModel):
    """How often something was done, and the sum of its times in nanoseconds."""

    count: int
    ns: int


class InferenceStatistics(BaseModel):
    """Times of requests by phase."""

    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    cache_hit: Duration
    cache_miss: Duration


class BatchStatistics(BaseModel):
    """Times of the first stage's batches of one size."""

    batch_size: int
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


class ModelStatistics(BaseModel):
    """Statistics of a version of a model; `last_inference` is in milliseconds since 1970."""

    name: str
    version: str
    last_inference: int
    inference_count: int
    execution_count: int
    inference_stats: InferenceStatistics
    batch_stats: list[BatchStatistics]


class Statistics(BaseModel):
    """Statistics of models."""

    model_stats: list[ModelStatistics]
