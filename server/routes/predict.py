"""POST /predict: images or texts in, labels out."""

import asyncio
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from fastapi import APIRouter, Request, Response

from models.file_kinds import begins_as_image
from server.batch import FEW_ITEMS
from server.dispatch import SMALL_PAYLOAD, Payload
from server.errors import InvalidContent, ServeError, UnsupportedMedia
from server.form_input import FormInput, read_input
from server.forms import parse_form
from server.front import Modality, front_of
from server.problems import parse_json, problem
from server.routes import hugging_face
from server.routes.answers import JSON, json_response, media_type_of, parse_options, prediction_json
from server.schemas import (
    LabelSetPrediction,
    Options,
    PredictBody,
    Prediction,
    Predictions,
    Problem,
)

router = APIRouter(tags=["prediction"])

MEDIA_TYPES = (
    "image/*, application/octet-stream (an image), multipart/form-data or application/json"
)
UNNAMED = "application/octet-stream"  # an image, for its bytes tell the format
URL_ENCODED = "application/x-www-form-urlencoded"  # what `curl --data-binary` says of any file
LOST_BYTES = (b"\0", b"\r", b"\n")  # by `curl -d`; every image file has some
BLANKS, MOST_BLANKS = b" \t\r\n\xef\xbb\xbf", 64  # before JSON
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


PROBLEMS: Final[dict[int | str, dict[str, Any]]] = {
    code: {"model": Problem} for code in (400, 404, 413, 415, 422, 429, 500, 503, 504)
}
SAMPLE_REQUEST: Final = {
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
}


class Samples(NamedTuple):
    """The samples that a request holds.

    Attributes:
        modality: What they are.
        payloads: One of each sample.
        is_list: Whether they came as a list; else there is one.
        options: The request's.
    """

    modality: Modality
    payloads: Sequence[Payload]
    is_list: bool
    options: Options


@router.post(
    "/predict",
    response_class=Response,
    responses={200: {"model": Prediction | LabelSetPrediction | Predictions}, **PROBLEMS},
    openapi_extra=SAMPLE_REQUEST,
)
async def predict(request: Request) -> Response:
    """Classify images or texts; each leaves at the first exit that is confident enough."""
    if (answer := await hugging_face.answer_if_asked(request)) is not None:
        return answer
    modality, payloads, is_list, options = await read_samples(request)
    if is_list:
        return await _answer_list(request, modality, payloads, options)
    return await _answer_one(request, modality, payloads[0], options)


async def read_samples(request: Request) -> Samples:
    """Read a request's body by its content type, and its options.

    Raises:
        ServeError: If the type is not taken, or the body or an option is invalid.
    """
    media_type = media_type_of(request)
    if media_type.startswith("image/") or media_type == UNNAMED:
        body = await request.body()
        given = request.query_params if request.scope["query_string"] else {}
        return Samples("image", [body], False, parse_options(given))
    if media_type == JSON:
        return await _read_json(request)
    if media_type == "multipart/form-data":
        return await _read_form(request)
    if media_type in ("", URL_ENCODED):
        return await _read_untyped(request, media_type)
    raise UnsupportedMedia(f"content type {media_type[:80]!r} is not taken; send {MEDIA_TYPES}")


async def _read_json(request: Request) -> Samples:
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
    return Samples(modality, items, is_list, parse_options({**request.query_params, **chosen}))


async def _read_form(request: Request) -> Samples:
    body, front = await request.body(), front_of(request)
    arguments = request.headers["content-type"], body, front.settings.max_parts
    if len(body) <= SMALL_PAYLOAD:
        given = _parse_form(*arguments)
    else:
        loop = asyncio.get_running_loop()
        given = await loop.run_in_executor(front.parse_pool, _parse_form, *arguments)
    options = parse_options({**request.query_params, **given.options})
    return Samples(given.modality, [given.payload], False, options)


def _parse_form(content_type: str, body: bytes, max_parts: int) -> FormInput:
    return read_input(parse_form(content_type, body, max_parts))


async def _read_untyped(request: Request, media_type: str) -> Samples:
    """Read an image that came without its type; refuse anything else by what it seems to be."""
    body = await request.body()
    if begins_as_image(body):
        if media_type == URL_ENCODED and not any(byte in body for byte in LOST_BYTES):
            raise InvalidContent(
                "the image lacks all its zero bytes and line ends, as `curl -d` leaves it; send it "
                "with --data-binary"
            )
        given = request.query_params if request.scope["query_string"] else {}
        return Samples("image", [body], False, parse_options(given))
    if body[:MOST_BLANKS].lstrip(BLANKS)[:1] == b"{":
        remedy = "this seems to be JSON: add the header 'Content-Type: application/json'"
    else:
        remedy = (
            "for an image add the header 'Content-Type: application/octet-stream', for fields send "
            "multipart/form-data or application/json"
        )
    raise UnsupportedMedia(f"content type {media_type or '(none)'!r} is not taken; {remedy}")


async def _answer_one(
    request: Request, modality: Modality, payload: Payload, options: Options
) -> Response:
    """Answer a request that holds one sample."""
    front = front_of(request)
    model = front.select_model(options.model, modality, version=options.version)
    request_id: str = request.state.request_id
    front.admission.admit(1)
    try:
        served = await model.dispatcher.infer(
            payload, options, request.state.received_s, request_id, owner=request.state.owner
        )
        answer = await prediction_json(model, served, options)
    finally:
        front.admission.release(1)
    request.state.server_timing = {
        name: answer["latency_ms"][name] for name in ("queue", "decode", "compute")
    }
    return json_response(answer)


async def _answer_list(
    request: Request, modality: Modality, payloads: Sequence[Payload], options: Options
) -> Response:
    """Answer a request that holds a list: every item is a request of its own to the engine."""
    front = front_of(request)
    model = front.select_model(options.model, modality, version=options.version)
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
            return await prediction_json(model, served, options)
        except ServeError as error:
            request.app.state.refusals.record_if_refusal(error)
            return {"error": problem(error.status, error.code, error.detail, item_id)}

    tasks = [
        asyncio.ensure_future(answer(payload, f"{request_id}/{place}"))
        for place, payload in enumerate(payloads)
    ]
    for task in tasks:  # a callback, since a task that is cancelled before it begins runs nothing
        task.add_done_callback(lambda _: front.admission.release(1))
    return json_response({"predictions": await asyncio.gather(*tasks)})
