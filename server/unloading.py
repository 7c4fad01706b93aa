"""Letting go of a model: its last requests are answered, and its memory is given back."""

import asyncio
import ctypes
import gc
import logging
import time
from collections.abc import Callable, Sequence

from server.dispatch import Dispatcher
from server.engine.request import InferenceRequest
from server.errors import UnknownModel

log = logging.getLogger(__name__)

DRAIN_S = 30.0  # for requests that a model has when it is unloaded
POLL_S = 0.02
UNLOADED = "the model has been unloaded; POST /v2/repository/index lists those that are served"


async def drain(
    dispatcher: Dispatcher,
    timeout_s: float = DRAIN_S,
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Return once a model that no request reaches any more has answered all that it had.

    Those that come to it all the same, or are still open after the time, are refused.

    Args:
        dispatcher: The model's.
        timeout_s: How long they may take.
        clock: Seconds, monotonic.
    """
    ends_s, was_idle = clock() + timeout_s, False
    # Twice, since a handler that has just chosen the model may still be about to dispatch to it.
    while not (was_idle and dispatcher.idle):
        if clock() >= ends_s:
            log.warning("a model is unloaded with requests that took more than %g s", timeout_s)
            break
        was_idle = dispatcher.idle
        await asyncio.sleep(POLL_S)
    dispatcher.client = UnloadedClient(dispatcher)


class UnloadedClient:
    """Refuses requests to a model that has been unloaded; an `EngineClient`.

    Args:
        dispatcher: The model's.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    def submit(self, requests: Sequence[InferenceRequest]) -> None:
        """Refuse requests; any thread may call."""
        for request in requests:
            request.result = UnknownModel(UNLOADED)
        self._dispatcher.on_done(list(requests))

    def cancel(self, requests: Sequence[InferenceRequest]) -> None:
        """Do nothing: no engine has them."""

    def note_cancelled(self, count: int) -> None:
        """Do nothing: nobody counts them any more."""

    def note_delivery(self, now_s: float, took_s: float) -> None:
        """Do nothing: no engine predicts anything."""


def release_memory() -> None:
    """Return to the system what was freed; takes some milliseconds.

    Python finds what refers to itself, and the C library keeps freed memory for itself, so that a
    process would seem to grow with each model that comes and goes.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc alone
    if trim is not None:
        trim(0)
