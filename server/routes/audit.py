"""GET /audit, GET /audit/rows."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from server.audit_view import audit_state, rows_npz
from server.lifecycle import service_of
from server.model import ServedModel
from server.schemas import Audits, ModelQuery

router = APIRouter(tags=["quality"])

Named = Annotated[ModelQuery, Query()]
UNKNOWN = -1  # a label


@router.get("/audit")
async def get_audit(request: Request, query: Named) -> Audits:
    """How far early exits agree with the last, by a sample of the traffic that ran on to it."""
    meant = service_of(request).meant(query.model)
    return Audits(models=[audit_state(model) for model in meant])


@router.get(
    "/audit/rows",
    response_class=Response,
    responses={200: {"content": {"application/octet-stream": {}}}},
)
async def get_rows(request: Request, query: Named) -> Response:
    """What all exits said of the audited samples of one model, as npz; no input is ever kept."""
    model = service_of(request).named(query.model)
    model.count()
    rows = list(model.auditor.log.rows)
    labels = [_label(model, row.request_key) for row in rows]
    empty = (model.num_exits, len(model.classes))
    content = await asyncio.to_thread(rows_npz, rows, labels, empty)
    return Response(content, media_type="application/octet-stream")


def _label(model: ServedModel, key: int) -> int:
    """The true label of an audited sample, whether it came before its row was logged or after."""
    for label in (model.auditor.log.label_of(key), model.feedback.label_of(key)):
        if label is not None:
            return label
    return UNKNOWN
