"""POST /predict: images or texts in, labels out."""

import asyncio
import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pydantic_core
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from models.postprocess import probabilities
from server.errors import (
    InvalidContent,
    ServeError,
    UnsupportedMedia,
)
from server.forms import read_form, require_utf_8
from server.lifespan import ServerState, server_state
from server.model import ServedModel
from server.problems import first_error, parse_json, problem
from server.routes.budget import shown_threshold
from server.sample import SMALL_INPUT, Load, Modality, Served
from server.schemas import Options, PredictBody, Prediction, Predictions, Problem

router = APIRouter(tags=["prediction"])

FEW_ITEMS = 4  # of a list; more are decoded on the threads, however small
MEDIA_TYPES = "image/*, multipart/form-data or application/json"
_IMAGE_BODY = {"schema": {"type": "string", "format": "binary"}}
_FORM_BODY = {
    "schema": {
        "type": "object",
        "properties": {"file": {"type": "string", "format": "binary"}, "text": {"type": "string"}},
    }
}
_QUERY = [
    {"name": name, "in": "query", "schema": schema}
    for name, schema in Options.model_json_schema()["properties"].items()
]


DEFAULTS = Options.model_validate({})


class _Input(NamedTuple):
    """What a request holds: how to get each image's bytes or text, and the options."""

    reads: Modality
    loads: Sequence[Load]
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
    """Classify images or texts; each leaves at the first exit that is sure enough."""
    service = server_state(request)
    given = await _read(request, service)
    model = service.select_model(given.options.model, given.reads)
    request_id: str = request.state.request_id
    service.admission.admit(len(given.loads))
    release = service.admission.release
    ids = [f"{request_id}/{i}" for i in range(len(given.loads))] if given.is_list else [request_id]
    answers = [
        model.predict(load, given.options, request.state.received_s, id)
        for load, id in zip(given.loads, ids, strict=True)
    ]
    if not given.is_list:
        try:
            served = await answers[0]
        finally:
            release(1)
        request.state.server_timing = _timing(served)
        prediction = _prediction(model, served, given.options, request_id)
        _remember(service, prediction)
        return _json(prediction)
    tasks = [asyncio.ensure_future(answer) for answer in answers]
    for task in tasks:  # not within the answer: one that is cancelled before it begins runs nothing
        task.add_done_callback(lambda _: release(1))
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    items = [
        _item(model, outcome, given.options, id) for id, outcome in zip(ids, outcomes, strict=True)
    ]
    for item in items:
        _remember(service, item)
    return _json({"predictions": items})


def _remember(service: ServerState, item: Mapping[str, Any]) -> None:
    """So that a true label may come for it later."""
    if "error" not in item:
        service.answers.record(item["request_id"], item["model"], item["exit"], item["class_id"])


async def _read(request: Request, service: ServerState) -> _Input:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type.startswith("image/"):
        body = await request.body()
        given = request.query_params if request.scope["query_string"] else {}
        return _Input("image", [Load(len(body), lambda: body)], False, _options(given))
    if media_type == "application/json":
        return await _read_json(request, service)
    if media_type == "multipart/form-data":
        return await _read_form(request, service)
    raise UnsupportedMedia(
        f"content type {media_type or '(none)'!r} is not taken; send {MEDIA_TYPES}"
    )


async def _read_json(request: Request, service: ServerState) -> _Input:
    require_utf_8(request.headers["content-type"])
    body = await request.body()
    if len(body) <= SMALL_INPUT:
        parsed = parse_json(PredictBody, body)
    else:
        loop = asyncio.get_running_loop()
        parsed = await loop.run_in_executor(service.decode_pool, parse_json, PredictBody, body)
    reads: Modality = "image" if parsed.text is None and parsed.texts is None else "text"
    items, is_list = parsed.items
    most = min(service.settings.max_items, service.settings.max_queue)
    if len(items) > most:
        raise InvalidContent(f"{len(items)} {reads}s in one list; {most} is the most, split it")
    chosen = {
        name: getattr(parsed, name)
        for name in parsed.model_fields_set & Options.model_fields.keys()
    }
    options = _options({**request.query_params, **chosen})
    load = _base64_loader if reads == "image" else _text_loader
    small = len(items) <= FEW_ITEMS
    return _Input(reads, [load(item)._replace(small=small) for item in items], is_list, options)


async def _read_form(request: Request, service: ServerState) -> _Input:
    most_bytes = service.settings.max_body_mib * 2**20  # of the whole body, so of a text too
    form = await read_form(request, most_bytes)
    try:
        parts = form.multi_items()
        fields = {name: value for name, value in parts if not isinstance(value, UploadFile)}
        bodies = [
            await value.read()
            for name, value in parts
            if name in ("file", "image") and isinstance(value, UploadFile)
        ]
    finally:
        await form.close()
    texts = [value for name, value in parts if name == "text" and isinstance(value, str)]
    if len(bodies) + len(texts) != 1:
        raise InvalidContent(
            f"the form holds {len(bodies)} files named file or image and {len(texts)} texts; send "
            f"one of either"
        )
    for name in ("text", "_charset_"):
        fields.pop(name, None)
    options = _options({**request.query_params, **fields})
    if texts:
        return _Input("text", [_text_loader(texts[0])], False, options)
    return _Input("image", [Load(len(bodies[0]), lambda: bodies[0])], False, options)


def _options(given: Mapping[str, Any]) -> Options:
    if not given:
        return DEFAULTS
    try:
        return Options.model_validate(dict(given))
    except ValidationError as error:
        raise InvalidContent(first_error(error)) from error


def _text_loader(text: str) -> Load:
    return Load(len(text), lambda: text)


def _base64_loader(text: str) -> Load:
    def load() -> bytes:
        data = text.partition(",")[2] if text.startswith("data:") else text
        try:
            return base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise InvalidContent(f"the image is not base64: {error}") from error

    return Load(len(text), load)


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
    probs = probabilities(answer.said.log_probs)
    ranking = np.argsort(-probs, kind="stable")[: options.top_k]
    top_k = list(zip(ranking.tolist(), probs[ranking].tolist(), strict=True))
    best, confidence = top_k[0]
    result: dict[str, Any] = {
        "model": model.name,
        "version": model.version,
        "label": model.classes[best],
        "class_id": best,
        "confidence": confidence,
        "exit": answer.exit,
        "num_exits": model.num_exits,
        "top_k": [
            {"label": model.classes[c], "class_id": c, "probability": probability}
            for c, probability in top_k
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
    if served.mask is not None:
        result["mask"] = base64.b64encode(served.mask).decode()
    if served.truncated:
        result["truncated"] = True
    if answer.late:
        result["deadline_exceeded"] = True
    return result


def _winner(model: ServedModel, log_probs: NDArray[np.float32]) -> dict[str, Any]:
    probs = probabilities(log_probs)
    best = int(probs.argmax())
    return {"label": model.classes[best], "confidence": float(probs[best])}


def _timing(served: Served) -> dict[str, float]:
    return {
        "queue": served.answer.queue_ms,
        "decode": served.decode_ms,
        "compute": served.answer.compute_ms,
    }


def _json(content: dict[str, Any]) -> Response:
    return Response(pydantic_core.to_json(content), media_type="application/json")
