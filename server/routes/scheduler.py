"""POST /scheduler/reload."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query, Request

from server.errors import InvalidContent
from server.lifespan import server_state
from server.schemas import ModelQuery, Reloaded, Reloads

router = APIRouter(tags=["scheduler"])


@router.post("/scheduler/reload")
async def reload_scheduler(request: Request, query: Annotated[ModelQuery, Query()]) -> Reloads:
    """Switch to the schedulers that the bundles hold now; requests in flight keep theirs."""
    meant = server_state(request).select_models(query.model)
    try:
        fresh = [await asyncio.to_thread(model.reload_scheduler) for model in meant]
    except ValueError as error:
        raise InvalidContent(str(error)) from error
    for model, each in zip(meant, fresh, strict=True):
        model.activate_scheduler(each)
    return Reloads(
        models=[
            Reloaded(model=model.name, policy=each.policy.kind, sha256=each.sha256)
            for model, each in zip(meant, fresh, strict=True)
        ]
    )
