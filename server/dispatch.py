"""The way of a sample into the engine, and of its answer back to the waiting client for it."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, NamedTuple

from prometheus_client import Counter

from server.decoder import Decoder
from server.engine.engine import Engine
from server.engine.request import InferenceRequest, Prediction
from server.quality.auditor import Auditor
from server.sample import Decoded, Load, Request


class Wishes(NamedTuple):
    """What a request asks for; the fields of `Row`."""

    parameter: float | None
    deadline_s: float | None
    priority: int
    traced: bool


class Passed(NamedTuple):
    """An answer, how long it took, and what it was made of."""

    answer: Prediction
    total_ms: float
    decoded: Decoded


class Entrance:
    """Where the samples of one model come in. The loop's thread.

    Args:
        decode: Small inputs on the loop, others on a thread of the pool.
        decode_pool: Those threads.
        engine: Where rows go.
        auditor: Chooses among them.
        cancelled: Counts samples whose client left before they were in the engine.
    """

    def __init__(
        self,
        decode: Decoder,
        decode_pool: Executor,
        engine: Engine,
        auditor: Auditor,
        cancelled: Counter,
    ) -> None:
        self._decode = decode
        self._decode_pool = decode_pool
        self._engine = engine
        self._auditor = auditor
        self._cancelled = cancelled

    async def let_through(
        self, load: Load, wishes: Wishes, received_s: float, request_id: str
    ) -> Passed:
        """Answer one sample; arguments and errors as of `ServedModel.predict`.

        A parameter among the wishes is one of the policy that is the engine's as this begins.
        """
        future = asyncio.get_running_loop().create_future()
        request = Request(future, received_s, controlled=wishes.parameter is None)
        under = self._engine.active_policy
        audited = wishes.deadline_s is None
        trail = self._auditor.choose(request_id, self._engine.idle) if audited else None

        def enter(decoded: Decoded) -> None:
            request.decoded = decoded
            request.row = row = InferenceRequest(
                decoded.prepared.state, request, *wishes, under, trail
            )
            if request.left:
                self._cancelled.inc()
            else:
                self._engine.submit([row])

        try:
            decoded = self._decode.quickly(load)
            if decoded is None:
                self._decode_pool.submit(self._decode_and, enter, request, load)
            else:
                enter(decoded)
            answer, total_ms = await future
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):
                self._leave(request)
            if trail is not None:
                self._auditor.give_up(trail)
            raise
        finally:
            request.row = None  # which holds the request: no garbage collector need find them
        assert request.decoded is not None, "only decoded rows are answered"
        return Passed(answer, total_ms, request.decoded)

    def _leave(self, request: Request) -> None:
        """The client has gone: drop its row wherever it is."""
        request.left = True
        if request.row is not None:
            self._engine.cancel([request.row])

    def _decode_and(self, enter: Callable[[Decoded], None], request: Request, load: Load) -> None:
        """Decode thread: bytes or text to a row, and the row into the engine."""
        if request.left:
            self._cancelled.inc()
            return
        try:
            enter(self._decode(load))
        except Exception as error:
            request.future.get_loop().call_soon_threadsafe(_fail, request.future, error)


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
