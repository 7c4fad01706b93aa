"""POST /scheduler/reload."""

import logging
from typing import Annotated

from fastapi import APIRouter, Query, Request

from server.choice import select_models
from server.control import control_of
from server.errors import InvalidContent
from server.problems import parse_json, without_folders
from server.schemas import ModelQuery, Reloaded, ReloadRequest, Reloads

log = logging.getLogger(__name__)

router = APIRouter(tags=["scheduler"])


@router.post(
    "/scheduler/reload",
    openapi_extra={
        "requestBody": {
            "required": False,
            "content": {"application/json": {"schema": ReloadRequest.model_json_schema()}},
        }
    },
)
async def reload_scheduler(request: Request, query: Annotated[ModelQuery, Query()]) -> Reloads:
    """Switch to the schedulers that the bundles hold now; requests in flight keep theirs."""
    control = control_of(request)
    meant = select_models(control.models, query.model)
    body = await request.body()
    asked = parse_json(ReloadRequest, body) if body.strip() else ReloadRequest()
    try:
        fresh = [await model.reload_schedulers(asked.policy) for model in meant]
    except ValueError as error:
        log.warning("the scheduler is not reloaded: %s", error)
        folders = [model.folder for model in meant]
        raise InvalidContent(without_folders(str(error), folders)) from error
    for model, schedulers in zip(meant, fresh, strict=True):
        model.use_schedulers(schedulers, asked.policy)
    return Reloads(
        models=[
            Reloaded(
                model=model.name,
                version=model.shown_version,
                policy=model.scheduler.shown_name,
                sha256=model.scheduler.sha256,
            )
            for model in meant
        ]
    )
