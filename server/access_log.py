"""The access log: one line for each request, or for a random share of them; none for probes."""

import logging
import random
from typing import Any

from server.engine.request import Prediction
from server.logs import FIELDS
from server.request_context import RequestContext

LOGGER = "eenet.access"
PROBES = frozenset({"/livez", "/readyz", "/ping", "/metrics"})
PROBE_PREFIXES = ("/health", "/v2/health")


def is_probe(path: str) -> bool:
    """Whether only machines that watch the server ask for a path."""
    return path.rstrip("/") in PROBES or path.startswith(PROBE_PREFIXES)


class AccessLog:
    """Writes lines, whatever the level of the log is.

    Args:
        share: Of the requests, above 0 and up to 1.
        rng: Draws them.
        logger: Where the lines go.
    """

    def __init__(
        self,
        share: float,
        rng: random.Random | None = None,
        logger: logging.Logger | None = None,
    ) -> None:
        self._share = share
        self._rng = rng or random.Random()
        self._logger = logger or logging.getLogger(LOGGER)
        self._logger.setLevel(logging.INFO)

    def note(self, request: RequestContext, route: str, ended_s: float) -> None:
        """Write a line about a request, if it is drawn.

        Args:
            request: An answered request.
            route: Template of its path.
            ended_s: When its answer was out.
        """
        if self._share < 1 and self._rng.random() >= self._share:
            return
        fields: dict[str, Any] = {
            "method": request.method,
            "route": route,
            "status": request.status,
            "duration_ms": round((ended_s - request.received_s) * 1e3, 3),
        }
        if request.samples:
            model, sample = request.samples[0]
            fields["model"] = model
            if len(request.samples) > 1:
                fields["samples"] = len(request.samples)
            elif isinstance(sample.result, Prediction):
                fields["exit"] = sample.result.exit
        ids = {"request_id": request.request_id}
        if request.trace is not None:
            ids["trace_id"] = request.trace.trace_id
        self._logger.info("answered", extra={FIELDS: fields, **ids})
