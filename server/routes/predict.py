"""POST /predict: images or texts in, labels out."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pydantic_core
from fastapi import APIRouter, Request, Response
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from server.dispatch import SMALL_PAYLOAD, Payload
from server.engine.request import InferenceRequest
from server.errors import InvalidContent, ServeError, UnsupportedMedia
from server.forms import parse_form
from server.front import FrontModel, Modality, front_of
from server.hot_route import DEFAULTS, optional_fields, prediction_fields
from server.label_sets import label_set_fields, label_set_options
from server.problems import format_validation_error, parse_json, problem
from server.schemas import (
    LabelSetPrediction,
    Options,
    PredictBody,
    Prediction,
    Predictions,
    Problem,
)

router = APIRouter(tags=["prediction"])

FEW_ITEMS = 4  # of a list; more are decoded on the threads, however small
MEDIA_TYPES = (
    "image/*, application/octet-stream (an image), multipart/form-data or application/json"
)
UNNAMED = "application/octet-stream"  # an image, for its bytes tell the format
URL_ENCODED = "application/x-www-form-urlencoded"  # what `curl --data-binary` says of any file
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


@router.post(
    "/predict",
    response_class=Response,
    responses={
        200: {"model": Prediction | LabelSetPrediction | Predictions},
        **{code: {"model": Problem} for code in (400, 404, 413, 415, 422, 429, 500, 503, 504)},
    },
    openapi_extra={
        "parameters": _QUERY,
        "requestBody": {
            "required": True,
            "content": {
                "image/*": _IMAGE_BODY,
                "application/octet-stream": _IMAGE_BODY,
                "multipart/form-data": _FORM_BODY,
                "application/json": {"schema": PredictBody.model_json_schema()},
            },
        },
    },
)
async def predict(request: Request) -> Response:
    """Classify images or texts; each leaves at the first exit that is confident enough."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type.startswith("image/") or media_type == UNNAMED:
        body = await request.body()
        given = request.query_params if request.scope["query_string"] else {}
        return await _answer_one(request, "image", body, _options(given))
    if media_type == "application/json":
        return await _answer_json(request)
    if media_type == "multipart/form-data":
        return await _answer_form(request)
    if media_type == URL_ENCODED:
        raise UnsupportedMedia(
            f"content type {URL_ENCODED!r} is not taken; for a file add the header "
            f"'Content-Type: application/octet-stream', for fields send multipart/form-data or "
            f"application/json"
        )
    raise UnsupportedMedia(
        f"content type {media_type or '(none)'!r} is not taken; send {MEDIA_TYPES}"
    )


async def _answer_json(request: Request) -> Response:
    body, front = await request.body(), front_of(request)
    if len(body) <= SMALL_PAYLOAD:
        parsed = parse_json(PredictBody, body)
    else:
        loop = asyncio.get_running_loop()
        parsed = await loop.run_in_executor(front.parse_pool, parse_json, PredictBody, body)
    modality: Modality = "image" if parsed.text is None and parsed.texts is None else "text"
    items: Sequence[Payload]
    items, is_list = parsed.items
    items = items if parsed.pairs is None else parsed.pairs
    limit = min(front.settings.max_items, front.settings.max_queue)
    if len(items) > limit:
        raise InvalidContent(f"{len(items)} {modality}s in one list; {limit} is the most, split it")
    chosen = {
        name: getattr(parsed, name)
        for name in parsed.model_fields_set & Options.model_fields.keys()
    }
    options = _options({**request.query_params, **chosen})
    if is_list:
        return await _answer_list(request, modality, items, options)
    return await _answer_one(request, modality, items[0], options)


async def _answer_form(request: Request) -> Response:
    body, front = await request.body(), front_of(request)
    given = request.headers["content-type"], body, front.settings.max_parts
    if len(body) <= SMALL_PAYLOAD:
        form = parse_form(*given)
    else:
        loop = asyncio.get_running_loop()
        form = await loop.run_in_executor(front.parse_pool, parse_form, *given)
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
    pair = [value for name, value in parts if name == "text_pair" and isinstance(value, str)]
    if len(bodies) + len(texts) != 1:
        raise InvalidContent(
            f"the form holds {len(bodies)} files named file or image and {len(texts)} texts; send "
            f"one of either"
        )
    for name in ("text", "text_pair", "_charset_"):
        fields.pop(name, None)
    options = _options({**request.query_params, **fields})
    if texts:
        payload = (texts[0], pair[0]) if pair and pair[0] else texts[0]
        return await _answer_one(request, "text", payload, options)
    return await _answer_one(request, "image", bodies[0], options)


async def _answer_one(
    request: Request, modality: Modality, payload: Payload, options: Options
) -> Response:
    """Answer a request that holds one sample."""
    front = front_of(request)
    model = front.select_model(options.model, modality)
    request_id: str = request.state.request_id
    front.admission.admit(1)
    try:
        served = await model.dispatcher.infer(
            payload, options, request.state.received_s, request_id, owner=request.state.owner
        )
        answer = await _to_json(model, served, options)
    finally:
        front.admission.release(1)
    request.state.server_timing = {
        name: answer["latency_ms"][name] for name in ("queue", "decode", "compute")
    }
    return _json(answer)


async def _answer_list(
    request: Request, modality: Modality, payloads: Sequence[Payload], options: Options
) -> Response:
    """Answer a request that holds a list: every item is a request of its own to the engine."""
    front = front_of(request)
    model = front.select_model(options.model, modality)
    request_id: str = request.state.request_id
    front.admission.admit(len(payloads))
    may_block = len(payloads) <= FEW_ITEMS

    async def answer(payload: Payload, item_id: str) -> dict[str, Any]:
        try:
            served = await model.dispatcher.infer(
                payload,
                options,
                request.state.received_s,
                item_id,
                may_block=may_block,
                owner=request.state.owner,
            )
            return await _to_json(model, served, options)
        except ServeError as error:
            if error.reason is not None:
                request.app.state.metrics.count_rejected(error.reason)
            return {"error": problem(error.status, error.code, error.detail, item_id)}

    tasks = [
        asyncio.ensure_future(answer(payload, f"{request_id}/{place}"))
        for place, payload in enumerate(payloads)
    ]
    for task in tasks:  # a callback, since a task that is cancelled before it begins runs nothing
        task.add_done_callback(lambda _: front.admission.release(1))
    return _json({"predictions": await asyncio.gather(*tasks)})


def _options(given: Mapping[str, Any]) -> Options:
    if not given:
        return DEFAULTS
    try:
        return Options.model_validate(dict(given))
    except ValidationError as error:
        raise InvalidContent(format_validation_error(error)) from error


async def _to_json(model: FrontModel, served: InferenceRequest, options: Options) -> dict[str, Any]:
    """Return the JSON of one answer, with its mask if the model draws one."""
    if model.thresholds is not None:
        return _label_sets_to_json(model, served, options)
    mask = await model.dispatcher.draw_mask(served) if model.task == "segmentation" else None
    return {
        "model": model.name,
        "version": model.version,
        **prediction_fields(served, model.classes, model.num_exits, options.top_k),
        "request_id": served.request_id,
        **optional_fields(served, model.classes, model.num_exits, mask),
    }


def _label_sets_to_json(
    model: FrontModel, served: InferenceRequest, options: Options
) -> dict[str, Any]:
    """Return the JSON of an answer of any number of labels."""
    assert model.thresholds is not None, "models of label sets have thresholds"
    about = model.classes, model.thresholds
    return {
        "model": model.name,
        "version": model.version,
        **label_set_fields(served, *about, options.top_k),
        "request_id": served.request_id,
        **label_set_options(served, *about),
    }


def _json(content: dict[str, Any]) -> Response:
    return Response(pydantic_core.to_json(content), media_type="application/json")
