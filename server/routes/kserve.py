"""KServe's first protocol: POST /v1/models/{model}:predict, GET /v1/models."""

from typing import Any

from fastapi import APIRouter, Request, Response

from server.batch import infer_payloads
from server.control import control_of
from server.errors import NotReady
from server.front import front_of
from server.model import ModelControl
from server.protocol_schemas import KServeBody, KServeModel, KServeModels, KServePredictions
from server.routes.answers import (
    PROBLEMS,
    caller_of,
    check_unnamed,
    given_options,
    item_error,
    json_response,
    most_items,
    parse_body,
    prediction_json,
    read_nested,
)
from server.sample_forms import samples_of
from server.schemas import Options, Problem

router = APIRouter(tags=["other protocols"])

OWN_FIELDS = KServeBody.model_fields.keys() - Options.model_fields.keys()
NAME = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
VERSION = {**NAME, "name": "version"}
_BODY: dict[str, Any] = {
    "required": True,
    "content": {"application/json": {"schema": KServeBody.model_json_schema()}},
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"model": KServePredictions},
    **{code: {"model": Problem} for code in PROBLEMS},
}


@router.post(
    "/v1/models/{model}:predict",
    response_class=Response,
    responses=_RESPONSES,
    openapi_extra={"parameters": [NAME], "requestBody": _BODY},
)
@router.post(
    "/v1/models/{model}/versions/{version}:predict",
    response_class=Response,
    responses=_RESPONSES,
    openapi_extra={"parameters": [NAME, VERSION], "requestBody": _BODY},
)
async def predict(request: Request) -> Response:
    """Classify the instances: texts, or images in base64."""
    front, named = front_of(request), request.path_params
    model = front.select_model(named["model"], version=named.get("version"))
    with model.dispatcher.reserve():
        given = await read_nested(request)
        body: KServeBody = parse_body(KServeBody, given)
        own = {name: value for name, value in given.items() if name not in OWN_FIELDS}
        options = given_options(request, own, body.parameters)
        check_unnamed(options)
        samples, _ = samples_of(body.instances, "instances", most_items(front))
        served = await infer_payloads(front, model, samples, options, caller_of(request))
    return json_response(
        {
            "predictions": [
                item_error(request, each) or await prediction_json(model, each, options)
                for each in served
            ]
        }
    )


@router.get("/v1/models")
async def list_models(request: Request) -> KServeModels:
    """List the names of the loaded models."""
    return KServeModels(models=[model.name for model in control_of(request).models.latest()])


@router.get("/v1/models/{model}", responses={code: {"model": Problem} for code in (404, 503)})
async def model_ready(request: Request, model: str) -> KServeModel:
    """200 when the model takes requests."""
    check_ready(request, control_of(request).models.find(model))
    return KServeModel(name=model, ready=True)


def check_ready(request: Request, model: ModelControl) -> None:
    """Check that a model takes requests.

    Raises:
        NotReady: If it does not, or the server does not.
    """
    control = control_of(request)
    if reason := model.engines.fault or control.not_ready_reason or control.unhealthy_reason:
        raise NotReady(reason)
