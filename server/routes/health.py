"""GET /livez, /readyz (and its aliases), /metrics."""

import asyncio
import contextlib

from fastapi import APIRouter, Request, Response
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from server.control import control_of
from server.errors import NotReady
from server.exposition import metrics_text
from server.metrics import OPENMETRICS_TYPE

router = APIRouter(tags=["operations"])


@router.get("/livez")
async def livez(request: Request) -> dict[str, str]:
    """200 while the event loop and the engines make progress."""
    if reason := control_of(request).unhealthy_reason:
        raise NotReady(reason)
    return {"status": "live"}


@router.get("/readyz")
@router.get("/health", include_in_schema=False)
@router.get("/healthz", include_in_schema=False)
@router.get("/ping", include_in_schema=False)
async def readyz(request: Request) -> dict[str, str]:
    """200 when the server accepts requests: models loaded and warm, not draining, not broken."""
    control = control_of(request)
    if reason := control.not_ready_reason or control.unhealthy_reason:
        raise NotReady(reason)
    return {"status": "ready"}


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Metrics as Prometheus text, or as OpenMetrics if the scraper accepts that."""
    control = control_of(request)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(request.app.state.collect_s):
            await control.collect()
    control.refresh()
    registry = control.metrics.registry
    openmetrics = "application/openmetrics-text" in request.headers.get("accept", "")
    text = metrics_text(registry, openmetrics=openmetrics)
    return Response(text, media_type=OPENMETRICS_TYPE if openmetrics else CONTENT_TYPE_LATEST)
