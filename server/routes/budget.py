"""GET and PUT /budget, GET /frontier."""

from typing import Any

from fastapi import APIRouter, Request

from server.lifecycle import Service, service_of
from server.model import ServedModel
from server.schemas import BudgetChange, Budgets, FrontierEntry

router = APIRouter(tags=["budget"])


@router.get("/budget")
async def get_budget(request: Request, model: str | None = None) -> Budgets:
    """The budget of all models or of one, and what became of it."""
    return Budgets(models=[each.budget_state() for each in _meant(service_of(request), model)])


@router.put("/budget")
async def put_budget(request: Request, change: BudgetChange, model: str | None = None) -> Budgets:
    """Change the budget of all models or of one; in force from every sample's next exit on."""
    meant = _meant(service_of(request), model)
    given: dict[str, Any] = {name: getattr(change, name) for name in change.model_fields_set}
    for each in meant:
        each.set_budget(
            **{"budget_ms": each.controller.budget_ms, "measure": each.measure, **given}
        )
    return Budgets(models=[each.budget_state() for each in meant])


@router.get("/frontier")
async def get_frontier(request: Request, model: str | None = None) -> list[FrontierEntry]:
    """What each budget buys, in this host's present milliseconds."""
    return service_of(request).pick(model).frontier()


def _meant(service: Service, name: str | None) -> list[ServedModel]:
    return list(service.models.values()) if name is None else [service.pick(name)]
