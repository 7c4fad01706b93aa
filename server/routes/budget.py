"""GET and PUT /budget, GET /frontier."""

from typing import Annotated

from fastapi import APIRouter, Query, Request

from server.bodies import parse_json
from server.budget_view import budget_state, frontier_entries
from server.lifecycle import service_of
from server.schemas import BudgetChange, Budgets, FrontierEntry, ModelQuery

router = APIRouter(tags=["budget"])

Named = Annotated[ModelQuery, Query()]


@router.get("/budget")
async def get_budget(request: Request, query: Named) -> Budgets:
    """The budget of all models or of one, and what became of it."""
    meant = service_of(request).meant(query.model)
    return Budgets(models=[budget_state(each) for each in meant])


@router.put(
    "/budget",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": BudgetChange.model_json_schema()}},
        }
    },
)
async def put_budget(request: Request, query: Named) -> Budgets:
    """Change the budget of all models or of one; in force from every sample's next exit on."""
    meant = service_of(request).meant(query.model)
    change = parse_json(BudgetChange, await request.body())
    given = {name: getattr(change, name) for name in change.model_fields_set}
    for each in meant:
        each.set_budget(
            **{"budget_ms": each.controller.budget_ms, "measure": each.measure, **given}
        )
    return Budgets(models=[budget_state(each) for each in meant])


@router.get("/frontier")
async def get_frontier(request: Request, query: Named) -> list[FrontierEntry]:
    """What each budget buys, in this host's present milliseconds."""
    return frontier_entries(service_of(request).named(query.model))
