"""POST /scheduler/reload."""

from typing import Annotated

from fastapi import APIRouter, Query, Request

from server.choice import select_models
from server.control import control_of
from server.errors import InvalidContent
from server.schemas import ModelQuery, Reloaded, Reloads

router = APIRouter(tags=["scheduler"])


@router.post("/scheduler/reload")
async def reload_scheduler(request: Request, query: Annotated[ModelQuery, Query()]) -> Reloads:
    """Switch to the schedulers that the bundles hold now; requests in flight keep theirs."""
    control = control_of(request)
    meant = select_models(control.models, query.model)
    try:
        fresh = [await model.reload_scheduler() for model in meant]
    except ValueError as error:
        raise InvalidContent(str(error)) from error
    for model, each in zip(meant, fresh, strict=True):
        model.activate_scheduler(each)
    switched = [
        (model, each.calibrated.policy, each.calibrated.sha256)
        for model, each in zip(meant, fresh, strict=True)
    ]
    return Reloads(
        models=[
            Reloaded(model=model.name, policy=policy.kind, sha256=sha256)
            for model, policy, sha256 in switched
        ]
    )
