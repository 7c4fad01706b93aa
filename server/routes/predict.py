"""POST /predict: pictures in, labels out."""

import asyncio
import base64
import binascii
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pydantic_core
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from server.bodies import first_error, parse_json
from server.errors import (
    InvalidContent,
    MalformedRequest,
    ServeError,
    UnknownModel,
    UnsupportedMedia,
    problem,
)
from server.lifecycle import Service, service_of
from server.model import Served, ServedModel, shown_threshold
from server.schemas import Options, PredictBody, Prediction, Predictions, Problem

router = APIRouter(tags=["prediction"])

MEDIA_TYPES = "image/*, multipart/form-data or application/json"
_IMAGE_BODY = {"schema": {"type": "string", "format": "binary"}}
_FORM_BODY = {
    "schema": {"type": "object", "properties": {"file": {"type": "string", "format": "binary"}}}
}
_QUERY = [
    {"name": name, "in": "query", "schema": schema}
    for name, schema in Options.model_json_schema()["properties"].items()
]


class _Input(NamedTuple):
    """What a request holds: how to get each picture's bytes, and the options."""

    loads: list[Callable[[], bytes]]
    is_list: bool
    options: Options


@router.post(
    "/predict",
    response_class=Response,
    responses={
        200: {"model": Prediction | Predictions},
        **{code: {"model": Problem} for code in (400, 404, 413, 415, 422, 429, 500, 503, 504)},
    },
    openapi_extra={
        "parameters": _QUERY,
        "requestBody": {
            "required": True,
            "content": {
                "image/*": _IMAGE_BODY,
                "multipart/form-data": _FORM_BODY,
                "application/json": {"schema": PredictBody.model_json_schema()},
            },
        },
    },
)
async def predict(request: Request) -> Response:
    """Classify a picture or a list; each leaves at the first exit that is sure enough."""
    service = service_of(request)
    given = await _read(request, service)
    model = service.pick(given.options.model)
    request_id: str = request.state.request_id
    service.admission.admit(len(given.loads))
    answers = (
        _admitted(service, model.predict(load, given.options, request.state.received_s))
        for load in given.loads
    )
    if not given.is_list:
        served = await next(answers)
        request.state.server_timing = _timing(served)
        return _json(_prediction(model, served, given.options, request_id))
    outcomes = await asyncio.gather(*answers, return_exceptions=True)
    items = [
        _item(model, outcome, given.options, f"{request_id}/{i}")
        for i, outcome in enumerate(outcomes)
    ]
    return _json({"predictions": items})


async def _admitted(service: Service, answer: Awaitable[Served]) -> Served:
    """One admitted sample's answer; its place in the queue is given back."""
    try:
        return await answer
    finally:
        service.admission.release(1)


async def _read(request: Request, service: Service) -> _Input:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type.startswith("image/"):
        body = await request.body()
        return _Input([lambda: body], False, _options(request.query_params))
    if media_type == "application/json":
        return await _read_json(request, service)
    if media_type == "multipart/form-data":
        return await _read_form(request)
    raise UnsupportedMedia(
        f"content type {media_type or '(none)'!r} is not taken; send {MEDIA_TYPES}"
    )


async def _read_json(request: Request, service: Service) -> _Input:
    body = await request.body()
    loop = asyncio.get_running_loop()
    parsed = await loop.run_in_executor(service.decode_pool, parse_json, PredictBody, body)
    if parsed.text is not None or parsed.texts is not None:
        raise UnknownModel(f"no text model is loaded; {', '.join(service.models)} takes images")
    items = parsed.images if parsed.images is not None else [parsed.image or ""]
    most = min(service.settings.max_items, service.settings.max_queue)
    if len(items) > most:
        raise InvalidContent(f"{len(items)} images in one list; {most} is the most, split it")
    chosen = {
        name: getattr(parsed, name)
        for name in parsed.model_fields_set & Options.model_fields.keys()
    }
    options = _options({**request.query_params, **chosen})
    return _Input([_base64_loader(item) for item in items], parsed.images is not None, options)


async def _read_form(request: Request) -> _Input:
    try:
        async with request.form() as form:
            parts = form.multi_items()
            fields = {name: value for name, value in parts if not isinstance(value, UploadFile)}
            bodies = [
                await value.read()
                for name, value in parts
                if name in ("file", "image") and isinstance(value, UploadFile)
            ]
    except UnicodeError as error:  # some charsets that a client may name fail their own way
        raise MalformedRequest(f"the form cannot be read: {error}") from error
    if "text" in fields:
        raise InvalidContent("no text model is loaded; send one picture as the part named file")
    if len(bodies) != 1:
        raise InvalidContent(f"the form holds {len(bodies)} files named file or image; send one")
    options = _options({**request.query_params, **fields})
    return _Input([lambda: bodies[0]], False, options)


def _options(given: Mapping[str, Any]) -> Options:
    try:
        return Options.model_validate(dict(given))
    except ValidationError as error:
        raise InvalidContent(first_error(error)) from error


def _base64_loader(text: str) -> Callable[[], bytes]:
    def load() -> bytes:
        data = text.partition(",")[2] if text.startswith("data:") else text
        try:
            return base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise InvalidContent(f"the image is not base64: {error}") from error

    return load


def _item(
    model: ServedModel, outcome: Served | BaseException, options: Options, request_id: str
) -> dict[str, Any]:
    """One entry of a list's answer: a prediction, or the error of this item alone."""
    if isinstance(outcome, Served):
        return _prediction(model, outcome, options, request_id)
    if isinstance(outcome, ServeError):
        return {"error": problem(outcome.status, outcome.code, outcome.detail, request_id)}
    raise outcome


def _prediction(
    model: ServedModel, served: Served, options: Options, request_id: str
) -> dict[str, Any]:
    answer = served.answer
    probs = np.exp(answer.log_probs)
    ranking = [int(c) for c in np.argsort(-probs, kind="stable")[: options.top_k]]
    best = int(probs.argmax())
    result: dict[str, Any] = {
        "model": model.name,
        "version": model.version,
        "label": model.classes[best],
        "class_id": best,
        "confidence": float(probs[best]),
        "exit": answer.exit,
        "num_exits": model.num_exits,
        "top_k": [
            {"label": model.classes[c], "class_id": c, "probability": float(probs[c])}
            for c in ranking
        ],
        "latency_ms": {
            "total": round(served.total_ms, 3),
            "queue": round(answer.queue_ms, 3),
            "decode": round(served.decode_ms, 3),
            "compute": round(answer.compute_ms, 3),
        },
        "request_id": request_id,
    }
    if answer.trace is not None:
        result["trace"] = [
            {
                "exit": entry.exit,
                **_winner(model, entry.log_probs),
                "score": entry.score,
                "threshold": shown_threshold(
                    entry.threshold, last=entry.exit == model.num_exits - 1
                ),
                "elapsed_ms": round(entry.elapsed_ms, 3),
            }
            for entry in answer.trace
        ]
    if answer.late:
        result["deadline_exceeded"] = True
    return result


def _winner(model: ServedModel, log_probs: NDArray[np.float32]) -> dict[str, Any]:
    best = int(log_probs.argmax())
    return {"label": model.classes[best], "confidence": float(np.exp(log_probs[best]))}


def _timing(served: Served) -> dict[str, float]:
    return {
        "queue": served.answer.queue_ms,
        "decode": served.decode_ms,
        "compute": served.answer.compute_ms,
    }


def _json(content: dict[str, Any]) -> Response:
    return Response(pydantic_core.to_json(content), media_type="application/json")
