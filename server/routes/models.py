"""GET /models: what is loaded."""

from fastapi import APIRouter, Request

from server.control import control_of
from server.model import ModelControl
from server.protocol_schemas import ModelEntry, ModelList

router = APIRouter(tags=["operations"])


@router.get("/models")
async def get_models(request: Request) -> ModelList:
    """List the loaded models: what they read, what they answer, and the promise in force."""
    return ModelList(models=[model_entry(each) for each in control_of(request).models.values()])


def model_entry(model: ModelControl) -> ModelEntry:
    """Return the description of a loaded model."""
    budget_ms = model.controller.budget_ms
    return ModelEntry(
        model=model.name,
        version=model.version,
        task=model.task,
        inputs=[model.input.kind],
        classes=list(model.classes),
        num_exits=model.num_exits,
        precision=model.precision,
        device=model.device,
        policy=model.scheduler.shown_name,
        promise=model.promise.kind(budget_ms),
        summary=model.summary,
        budget_ms=budget_ms,
        max_disagreement=model.promise.max_disagreement,
    )
