"""GET and PUT /budget, GET /frontier."""

from typing import Annotated

from fastapi import APIRouter, Query, Request

from server.choice import get_model, select_models
from server.control import control_of
from server.model import ModelControl
from server.problems import parse_json
from server.schemas import (
    BudgetChange,
    Budgets,
    BudgetState,
    Certified,
    FrontierEntry,
    ModelQuery,
    shown_threshold,
)

router = APIRouter(tags=["budget"])

Named = Annotated[ModelQuery, Query()]


@router.get("/budget")
async def get_budget(request: Request, query: Named) -> Budgets:
    """Budget of all models or of one, and how it is kept."""
    control = control_of(request)
    meant = select_models(control.models, query.model)
    await control.collect()
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
    """Change budget or promise of all models or one; they apply from each sample's next exit on."""
    control = control_of(request)
    meant = select_models(control.models, query.model)
    change = parse_json(BudgetChange, await request.body())
    control.book()  # waiting for busy engines would delay the change by a batch or two
    given = {name: getattr(change, name) for name in change.model_fields_set}
    for each in meant:
        each.set_budget(
            **{"budget_ms": each.controller.budget_ms, "measure": each.measure, **given}
        )
    return Budgets(models=[budget_state(each) for each in meant])


@router.get("/frontier")
async def get_frontier(request: Request, query: Named) -> list[FrontierEntry]:
    """Accuracy and exit rates to expect at each budget, in this host's present milliseconds."""
    return frontier_entries(get_model(control_of(request).models, query.model))


def budget_state(model: ModelControl) -> BudgetState:
    """Budget of a model, how it is kept, and the results to expect."""
    control = model.controller
    control.expire(model.clock())
    point = control.frontier.at_parameter(control.parameter)
    return BudgetState(
        model=model.name,
        version=model.shown_version,
        policy=model.scheduler.shown_name,
        budget_ms=control.budget_ms,
        measure=model.measure,
        effective_budget_ms=control.effective_budget_ms,
        parameter=control.parameter,
        rolling_latency_ms=control.rolling_latency_ms,
        window=control.config.window,
        samples=control.samples,
        floor_ms=control.floor_ms,
        ceiling_ms=control.ceiling_ms,
        feasible=control.feasible,
        reason=_reason(model),
        promise=model.promise.kind(control.budget_ms),
        summary=model.summary,
        max_disagreement=model.promise.max_disagreement,
        certified=_certified(model),
        min_agreement=model.quality.target.minimum,
        agreement=model.quality.agreement(control.parameter),
        yields=model.quality.violated_objective(control),
        expected_accuracy=point.expected_accuracy,
        expected_exit_rates=point.exit_rates.tolist(),
        exit_rates=control.exit_rates,
        thresholds=_thresholds(model),
    )


def frontier_entries(model: ModelControl) -> list[FrontierEntry]:
    """Points of a model's frontier at this host's present costs."""
    frontier, present_ms = model.controller.frontier, model.controller.present_ms
    return [
        FrontierEntry(
            budget_ms=present_ms(point.expected_cost_ms),
            parameter=point.parameter,
            expected_accuracy=point.expected_accuracy,
            expected_cost_ms=present_ms(point.expected_cost_ms),
            exit_rates=point.exit_rates.tolist(),
        )
        for point in (frontier[index] for index in range(len(frontier)))
    ]


def _certified(model: ModelControl) -> Certified | None:
    """The certificate in force; None if there is none."""
    control = model.controller
    certificate = model.promise.certified(control.budget_ms)
    if certificate is None:
        return None
    return Certified(
        epsilon=certificate.epsilon,
        confidence=certificate.confidence,
        rows=certificate.rows,
        bound=certificate.bound,
        cost_ms=control.present_ms(certificate.expected_cost_ms),
    )


def _thresholds(model: ModelControl) -> list[float | None]:
    thresholds = model.policy.thresholds(model.controller.parameter)
    if thresholds is None:
        return [None] * model.num_exits
    return [
        shown_threshold(value, last=exit == model.num_exits - 1)
        for exit, value in enumerate(thresholds.tolist())
    ]


def _reason(model: ModelControl) -> str | None:
    control, target = model.controller, model.quality.target
    yields = model.quality.violated_objective(control)
    if yields == "budget":
        return (
            f"the budget of {control.budget_ms:g} ms yields to the agreement floor of "
            f"{target.minimum:g}: early exits do not reach it at any point within the budget"
        )
    if yields == "agreement":
        return (
            f"the agreement floor of {target.minimum:g} yields to the budget of "
            f"{control.budget_ms:g} ms: fewer early predictions agree with the last exit"
        )
    if control.feasible:
        return model.promise.shortfall(control.budget_ms)
    cost = "present cost of exit 0" if control.is_current else "cost of exit 0 at the start"
    return (
        f"the budget of {control.budget_ms:g} ms is below {control.floor_ms:.3g} ms, the {cost}; "
        "every sample leaves there"
    )
