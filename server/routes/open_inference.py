"""The Open Inference Protocol v2: health, metadata, inference, statistics."""

import asyncio
from typing import Any

import numpy as np
import pydantic_core
from fastapi import APIRouter, Request, Response

from models.several_inputs import SeveralImages
from server import __version__
from server.batch import Caller, first_error, infer_payloads, infer_state
from server.choice import select_models
from server.control import control_of
from server.dispatch import SMALL_PAYLOAD
from server.engine.request import InferenceRequest
from server.errors import InvalidContent, NotReady
from server.front import Front, FrontModel, front_of
from server.gate import LENGTH_HEADER
from server.hot_route import REQUEST_ID
from server.model import ModelControl
from server.open_inference import (
    BINARY,
    InferenceCall,
    read_call,
    write_response,
)
from server.routes.answers import (
    PROBLEMS,
    caller_of,
    check_unnamed,
    given_options,
    most_items,
    require_one_label,
)
from server.routes.infer_stream import network_state, stream_row
from server.routes.kserve import NAME, VERSION, check_ready
from server.schemas import Options, Problem
from server.tensor_inputs import Rows, input_tensors
from server.tensor_outputs import Outputs, chosen_outputs, output_tensors

router = APIRouter(tags=["Open Inference Protocol"])

EXTENSIONS = ("binary_tensor_data", "classification", "parameters", "statistics")
PLATFORM = "eenet"
FEW_BINARY_BYTES = 2**20  # of numbers behind a short JSON, which are checked in a fraction of a ms
NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"model": Problem}}
UNREADY: dict[int | str, dict[str, Any]] = {503: {"model": Problem}}
_INFER: dict[str, Any] = {
    "response_class": Response,
    "responses": {
        200: {"content": {"application/json": {}, BINARY: {}}},
        **{code: {"model": Problem} for code in PROBLEMS},
    },
}
_INFER_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {"schema": {"type": "object", "required": ["inputs"]}},
        BINARY: {"schema": {"type": "string", "format": "binary"}},
    },
}


@router.get("/v2")
async def server_metadata() -> dict[str, Any]:
    """Name and version of the server, and what it adds to the protocol."""
    return {"name": "eenet-serve", "version": __version__, "extensions": list(EXTENSIONS)}


@router.get("/v2/health/live", responses=UNREADY)
async def server_live(request: Request) -> dict[str, bool]:
    """As GET /livez."""
    if reason := control_of(request).unhealthy_reason:
        raise NotReady(reason)
    return {"live": True}


@router.get("/v2/health/ready", responses=UNREADY)
async def server_ready(request: Request) -> dict[str, bool]:
    """As GET /readyz."""
    control = control_of(request)
    if reason := control.not_ready_reason or control.unhealthy_reason:
        raise NotReady(reason)
    return {"ready": True}


@router.get("/v2/models/stats")
async def all_statistics(request: Request) -> dict[str, Any]:
    """Statistics of all models."""
    control = control_of(request)
    await control.collect()
    return _statistics(*control.models.values())


@router.get("/v2/models/{model}", responses=NOT_FOUND)
async def model_metadata(request: Request, model: str) -> dict[str, Any]:
    """Inputs and outputs of a model's latest version, and the versions that are loaded."""
    found = select_models(control_of(request).models, model)
    return _metadata(found[-1], [each.version for each in found])


@router.get("/v2/models/{model}/versions/{version}", responses=NOT_FOUND)
async def version_metadata(request: Request, model: str, version: str) -> dict[str, Any]:
    """Inputs and outputs of a version of a model."""
    return _metadata(control_of(request).models.find(model, version), [version])


@router.get("/v2/models/{model}/ready", responses=NOT_FOUND | UNREADY)
async def model_ready(request: Request, model: str) -> dict[str, Any]:
    """200 when the model takes requests."""
    check_ready(request, control_of(request).models.find(model))
    return {"name": model, "ready": True}


@router.get("/v2/models/{model}/versions/{version}/ready", responses=NOT_FOUND | UNREADY)
async def version_ready(request: Request, model: str, version: str) -> dict[str, Any]:
    """200 when the version of the model takes requests."""
    check_ready(request, control_of(request).models.find(model, version))
    return {"name": model, "ready": True}


@router.get("/v2/models/{model}/stats", responses=NOT_FOUND)
async def model_statistics(request: Request, model: str) -> dict[str, Any]:
    """Statistics of all versions of a model."""
    control = control_of(request)
    found = select_models(control.models, model)
    await control.collect()
    return _statistics(*found)


@router.get("/v2/models/{model}/versions/{version}/stats", responses=NOT_FOUND)
async def version_statistics(request: Request, model: str, version: str) -> dict[str, Any]:
    """Statistics of a version of a model."""
    control = control_of(request)
    found = control.models.find(model, version)
    await control.collect()
    return _statistics(found)


@router.post(
    "/v2/models/{model}/infer",
    **_INFER,
    openapi_extra={"parameters": [NAME], "requestBody": _INFER_BODY},
)
@router.post(
    "/v2/models/{model}/versions/{version}/infer",
    **_INFER,
    openapi_extra={"parameters": [NAME, VERSION], "requestBody": _INFER_BODY},
)
async def infer(request: Request) -> Response:
    """Classify the rows of a tensor; each leaves at the first exit that is confident enough."""
    front, named = front_of(request), request.path_params
    model = front.select_model(named["model"], version=named.get("version"))
    require_one_label(model)
    with model.dispatcher.reserve():
        call = await _read(request, front, model)
        if isinstance(call.rows, np.ndarray) and isinstance(model.preprocess, SeveralImages):
            raise InvalidContent(
                f"{model.name} makes several inputs of an image; send encoded images as BYTES"
            )
        is_stream = call.parameters.pop("stream", False)
        if not isinstance(is_stream, bool):
            raise InvalidContent("parameters.stream should be true or false")
        options = _options(request, call)
        ranked = "top_k" in call.parameters or "top_k" in request.query_params
        wanted = chosen_outputs(call.wanted, model, options, binary=call.binary, ranked=ranked)
        is_id = call.id is not None and REQUEST_ID.fullmatch(call.id) is not None
        caller = caller_of(request, call.id if is_id else None)
        head = {
            "model_name": model.name,
            "model_version": model.version,
            "id": call.id or caller.request_id,
        }
        if is_stream:

            def as_fields(served: InferenceRequest) -> dict[str, Any]:
                outputs = Outputs(model, [served], [], options.top_k)
                tensors = [(outputs.tensor(each), False) for each in wanted]
                fields: dict[str, Any] = pydantic_core.from_json(write_response(head, tensors)[0])
                return fields

            return await stream_row(request, front, model, call, options, wanted, caller, as_fields)
        served = await _infer_rows(front, model, call.rows, options, caller)
    if (error := first_error(served)) is not None:
        raise error
    outputs = Outputs(model, served, await _masks(model, served), options.top_k)
    tensors = [(outputs.tensor(each), each.binary) for each in wanted]
    content, json_bytes = write_response(head, tensors)
    if json_bytes is None:
        return Response(content, media_type="application/json")
    return Response(content, headers={LENGTH_HEADER: str(json_bytes)}, media_type=BINARY)


async def _read(request: Request, front: Front, model: FrontModel) -> InferenceCall:
    """Read the body; one that takes long on the thread of large bodies."""
    body, header_length = await request.body(), request.headers.get(LENGTH_HEADER)
    is_short = header_length is not None and header_length.isdigit() and len(header_length) < 5
    given = body, header_length, model, most_items(front)
    if len(body) <= (FEW_BINARY_BYTES if is_short else SMALL_PAYLOAD):
        return read_call(*given)
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(front.parse_pool, read_call, *given)


async def _infer_rows(
    front: Front, model: FrontModel, rows: Rows, options: Options, caller: Caller
) -> list[InferenceRequest]:
    """Answer rows that came as numbers, or as files or texts."""
    if not isinstance(rows, np.ndarray):
        return await infer_payloads(front, model, rows, options, caller)
    return await infer_state(front, model, network_state(model, rows), len(rows), options, caller)


def _options(request: Request, call: InferenceCall) -> Options:
    """Read the options; Triton's `timeout` in microseconds is a deadline."""
    given = dict(call.parameters)
    timeout_us = given.pop("timeout", None)
    if timeout_us is not None:
        if type(timeout_us) is not int or not 0 < timeout_us < 2**63:
            raise InvalidContent("parameters.timeout should be a number of microseconds above 0")
        given.setdefault("deadline_ms", timeout_us / 1e3)
    options = given_options(request, given)
    check_unnamed(options)
    if options.trace:
        raise InvalidContent("trace: tensors hold none; send POST /predict")
    return options


async def _masks(model: FrontModel, served: list[InferenceRequest]) -> list[bytes]:
    if model.task != "segmentation":
        return []
    masks = [await model.dispatcher.draw_mask(each) for each in served]
    return [mask for mask in masks if mask is not None]


def _metadata(model: ModelControl, versions: list[str]) -> dict[str, Any]:
    return {
        "name": model.name,
        "versions": versions,
        "platform": PLATFORM,
        "inputs": input_tensors(model.input),
        "outputs": output_tensors(model.task, len(model.classes)),
    }


def _statistics(*models: ModelControl) -> dict[str, Any]:
    entries = [model.statistics.to_json(model.name, model.version) for model in models]
    return {"model_stats": entries}
