"""Parts that the routes of predictions share: options, bodies, and the JSON of an answer."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pydantic_core
from fastapi import Request, Response
from pydantic import BaseModel, ValidationError

from server.batch import Caller
from server.dispatch import SMALL_PAYLOAD
from server.engine.request import ExitTrace, InferenceRequest, Prediction
from server.errors import InvalidContent, ServeError
from server.front import Front, FrontModel, front_of
from server.hot_route import DEFAULTS, optional_fields, prediction_fields, trace_entry
from server.label_sets import label_set_fields, label_set_options, label_set_trace
from server.nested_json import read_object
from server.problems import format_validation_error, problem
from server.schemas import Options

JSON = "application/json"
PROBLEMS = (400, 401, 403, 404, 408, 413, 415, 422, 429, 500, 503, 504)


def media_type_of(request: Request) -> str:
    """Return the type of a body, in lower case and without parameters; "" if it names none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def parse_options(given: Mapping[str, Any]) -> Options:
    """Read options.

    Raises:
        InvalidContent: If one is unknown or has a bad value.
    """
    if not given:
        return DEFAULTS
    try:
        return Options.model_validate(dict(given))
    except ValidationError as error:
        raise InvalidContent(format_validation_error(error)) from error


async def read_nested(request: Request) -> dict[str, Any]:
    """Read a body of nested JSON; a large one on the thread of large bodies.

    Raises:
        MalformedRequest: If it is not JSON.
        InvalidContent: If it is no object.
        TooComplex: If it holds more values, or deeper ones, than any honest body.
    """
    body = await request.body()
    if len(body) <= SMALL_PAYLOAD:
        return read_object(body)
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(front_of(request).parse_pool, read_object, body)


def parse_body(kind: type[BaseModel], given: Mapping[str, Any]) -> Any:
    """Check the fields of a body that was read.

    Raises:
        InvalidContent: If one is unknown, missing or has a bad value.
    """
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise InvalidContent(format_validation_error(error)) from error


def given_options(request: Request, *given: Mapping[str, Any] | None) -> Options:
    """Read options from the query and from parts of the body; later ones override.

    Raises:
        InvalidContent: If one is unknown or has a bad value.
    """
    merged: dict[str, Any] = dict(request.query_params)
    for part in given:
        merged |= part or {}
    return parse_options(merged)


def check_unnamed(options: Options) -> None:
    """Check that the options of a request, whose path names model and version, name neither.

    Raises:
        InvalidContent: If they do.
    """
    for name in ("model", "version"):
        if getattr(options, name) is not None:
            raise InvalidContent(f"{name}: the path names the model and its version; leave it out")


def caller_of(request: Request, request_id: str | None = None) -> Caller:
    """Return who asks; by default under the id of the request."""
    state = request.state
    return Caller(state.received_s, request_id or state.request_id, state.owner)


def most_items(front: Front) -> int:
    """Return the most samples of one request."""
    return min(front.settings.max_items, front.settings.max_queue)


async def prediction_json(
    model: FrontModel, served: InferenceRequest, options: Options
) -> dict[str, Any]:
    """Return the JSON of one answer, with its mask if the model draws one."""
    if options.raw_scores:
        require_logits(model)
    if model.thresholds is not None:
        return _label_set_json(model, served, options)
    mask = await model.dispatcher.draw_mask(served) if model.task == "segmentation" else None
    fields = {
        "model": model.name,
        "version": model.version,
        **prediction_fields(served, model.classes, model.num_exits, options.top_k),
        "request_id": served.request_id,
        **optional_fields(served, model.classes, model.num_exits, mask),
    }
    if options.raw_scores:
        fields["logits"] = logits_of(model, served)
    return fields


def _label_set_json(
    model: FrontModel, served: InferenceRequest, options: Options
) -> dict[str, Any]:
    assert model.thresholds is not None, "models of label sets have thresholds"
    about = model.classes, model.thresholds
    return {
        "model": model.name,
        "version": model.version,
        **label_set_fields(served, *about, options.top_k),
        "request_id": served.request_id,
        **label_set_options(served, *about),
    }


def trace_json(model: FrontModel, entry: ExitTrace) -> dict[str, Any]:
    """Return the JSON of one exit in a trace."""
    if model.thresholds is not None:
        return label_set_trace(entry, model.classes, model.thresholds)
    return trace_entry(entry, model.classes, model.num_exits)


def require_one_label(model: FrontModel) -> None:
    """Check that a model gives each sample one label, as a protocol needs it.

    Raises:
        InvalidContent: If it gives several.
    """
    if model.thresholds is not None:
        raise InvalidContent(
            f"{model.name} gives any number of labels, which this protocol has no place for; send "
            f"POST /predict"
        )


def require_logits(model: FrontModel) -> None:
    """Check that an answer of a model has logits, one for each class.

    Raises:
        InvalidContent: If it has none.
    """
    if model.thresholds is not None:
        raise InvalidContent(f"raw_scores: {model.name} gives several labels; read top_k")
    if model.task == "segmentation":
        raise InvalidContent(f"raw_scores: {model.name} draws masks, one class for each pixel")


def logits_of(model: FrontModel, served: InferenceRequest) -> list[float]:
    """Return the logits of an answer, (C,): its probabilities are their softmax.

    Where exits are combined, these are the log-probabilities of the combination.

    Raises:
        InvalidContent: If the model draws masks.
    """
    require_logits(model)
    assert isinstance(served.result, Prediction), "only answered requests have predictions"
    logits: list[float] = served.result.output.logits.tolist()
    return logits


def item_error(request: Request, served: InferenceRequest) -> dict[str, Any] | None:
    """Return the JSON of an item that failed, and count it; None if it was answered."""
    error = served.result
    if not isinstance(error, ServeError):
        return None
    request.app.state.refusals.record_if_refusal(error)
    return {"error": problem(error.status, error.code, error.detail, served.request_id or "")}


def json_response(content: Any) -> Response:
    """Return a response of JSON."""
    return Response(pydantic_core.to_json(content), media_type="application/json")
