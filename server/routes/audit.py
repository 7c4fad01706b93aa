"""GET /audit, GET /audit/rows."""

import asyncio
import io
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query, Request, Response

from models.bundle import Precision
from scheduler.monitoring.agreement import wilson
from server.choice import get_model, select_models
from server.control import control_of
from server.model import ModelControl
from server.quality.audit_log import AuditedRow
from server.schemas import AuditExit, Audits, AuditState, ModelQuery

router = APIRouter(tags=["quality"])

Named = Annotated[ModelQuery, Query()]
UNKNOWN = -1  # a label


@router.get("/audit")
async def get_audit(request: Request, query: Named) -> Audits:
    """Agreement of early exits with the last one, measured on a share of the traffic."""
    control = control_of(request)
    meant = select_models(control.models, query.model)
    await control.collect()
    return Audits(models=[audit_state(model) for model in meant])


@router.get(
    "/audit/rows",
    response_class=Response,
    responses={200: {"content": {"application/octet-stream": {}}}},
)
async def get_rows(request: Request, query: Named) -> Response:
    """Outputs of all exit heads for one model's audited samples, as npz; inputs are never kept."""
    control = control_of(request)
    model = get_model(control.models, query.model)
    await control.collect()
    rows = list(model.audits.log.rows)
    repeated = control.answers.repeated()  # of these, one row at most is the one with the label
    labels = [
        UNKNOWN if row.request_key in repeated else _label(model, row.request_key) for row in rows
    ]
    empty = (model.num_exits, len(model.classes))
    content = await asyncio.to_thread(rows_npz, rows, labels, empty, model.precision)
    return Response(content, media_type="application/octet-stream")


def _label(model: ModelControl, key: int) -> int:
    """The true label of an audited sample, which may have come before its row was logged."""
    for label in (model.audits.log.label_of(key), model.feedback.label_of(key)):
        if label is not None:
            return label
    return UNKNOWN


def audit_state(model: ModelControl) -> AuditState:
    """Agreement, drift and accuracy of a model's exits."""
    audits, last = model.audits, model.num_exits - 1
    log = audits.log
    drift, tallies = model.quality.drift.psi(), model.feedback.tallies
    return AuditState(
        model=model.name,
        version=model.shown_version,
        policy=model.scheduler.shown_name,
        share=1.0 if model.promise.renews(model.controller.budget_ms) else audits.share,
        samples=len(log.rows),
        skipped=audits.skipped,
        lost=audits.lost,
        agreement=log.early.ratio,
        agreement_ci95=_interval(*log.early),
        exits=[
            AuditExit(
                exit=exit,
                samples=log.at(exit).samples,
                agreement=log.at(exit).ratio if exit < last else None,
                agreement_ci95=_interval(*log.at(exit)) if exit < last else None,
                score_drift=drift[exit] if exit < last else None,
                feedback_samples=tallies[exit].labels,
                feedback_accuracy=tallies[exit].accuracy,
                feedback_accuracy_ci95=_interval(tallies[exit].labels, tallies[exit].right),
            )
            for exit in range(model.num_exits)
        ],
    )


def rows_npz(
    rows: Sequence[AuditedRow], labels: Sequence[int], empty: tuple[int, int], precision: Precision
) -> bytes:
    """Audited rows as an npz file.

    Args:
        rows: N of them.
        labels: True class of each, -1 if unknown, (N,).
        empty: K and C, for the shape of no rows.
        precision: Precision of the graphs that they ran through.
    """
    exits, classes = empty
    log_probs = np.empty((exits, 0, classes), np.float16)
    if rows:
        log_probs = np.stack([row.heads for row in rows], 1)
    file = io.BytesIO()
    np.savez(
        file,
        allow_pickle=False,
        log_probs=log_probs,
        exits=np.array([row.exit for row in rows], np.int8),
        parameters=np.array([row.parameter for row in rows], np.float64),
        labels=np.array(labels, np.int32),
        precision=np.array(precision),
    )
    return file.getvalue()


def _interval(samples: int, hits: int) -> tuple[float, float] | None:
    """The 95 % confidence interval of a share; None without samples."""
    return wilson(hits, samples) if samples else None
