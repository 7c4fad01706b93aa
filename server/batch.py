"""The samples of one request, on their way together."""

import asyncio
from collections.abc import Callable, Sequence

from server.dispatch import Payload
from server.engine.request import InferenceRequest
from server.errors import ServeError
from server.front import Front, FrontModel
from server.request_context import current_request
from server.schemas import Options

FEW_ITEMS = 4  # of a list; more are decoded on the threads, however small
OnDone = Callable[[InferenceRequest], None]
Begin = Callable[[OnDone], Sequence[InferenceRequest]]


class Caller:
    """Who asks: what every sample of one request takes over.

    Args:
        received_s: When the request's headers arrived.
        request_id: The request's; sample i is `request_id/i`.
        owner: Who may give feedback on the answers.
    """

    def __init__(self, received_s: float, request_id: str, owner: int) -> None:
        self.received_s, self.request_id, self.owner = received_s, request_id, owner


async def infer_payloads(
    front: Front,
    model: FrontModel,
    payloads: Sequence[Payload],
    options: Options,
    caller: Caller,
) -> list[InferenceRequest]:
    """Answer files or texts; the `result` of each is a prediction or an error.

    Raises:
        NotReady: While the server drains or is broken.
        QueueFull: If the samples exceed a bound.
    """
    may_block = len(payloads) <= FEW_ITEMS
    context = current_request.get()
    trace = None if context is None else context.trace

    def begin(on_done: OnDone) -> list[InferenceRequest]:
        return [
            model.dispatcher.begin(
                payload,
                options,
                caller.received_s,
                f"{caller.request_id}/{place}",
                on_done,
                may_block=may_block,
                owner=caller.owner,
                trace=trace,
            )
            for place, payload in enumerate(payloads)
        ]

    return await _all(front, model, len(payloads), begin)


async def infer_state(
    front: Front,
    model: FrontModel,
    state: tuple[object, ...],
    rows: int,
    options: Options,
    caller: Caller,
) -> list[InferenceRequest]:
    """Answer N rows that came as the input of the network, submitted at once.

    Args:
        front: Limits them.
        model: Answers.
        state: Arrays of N rows each.
        rows: N.
        options: The request's.
        caller: The request's.

    Raises:
        NotReady: As `infer_payloads`.
        QueueFull: As there.
    """

    def begin(on_done: OnDone) -> list[InferenceRequest]:
        return model.dispatcher.begin_rows(
            state,
            options,
            caller.received_s,
            [f"{caller.request_id}/{place}" for place in range(rows)],
            on_done,
            owner=caller.owner,
        )

    return await _all(front, model, rows, begin)


def first_error(requests: Sequence[InferenceRequest]) -> ServeError | None:
    """Return the error of the first sample that has one, with its place; None if none has."""
    for place, request in enumerate(requests):
        error = request.result
        if isinstance(error, ServeError):
            request.result = None  # the error's traceback holds the request: leave no cycle
            if len(requests) > 1:
                error.detail = f"row {place}: {error.detail}"
            return error
    return None


async def _all(front: Front, model: FrontModel, count: int, begin: Begin) -> list[InferenceRequest]:
    """Admit and begin samples, and wait until each has its result."""
    front.admission.admit(count)
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    finished: set[InferenceRequest] = set()
    begun: Sequence[InferenceRequest] = ()

    def finish(request: InferenceRequest) -> None:
        finished.add(request)
        front.admission.release(1)
        if len(finished) == count and not future.done():
            future.set_result(None)

    try:
        begun = begin(finish)
        if (context := current_request.get()) is not None:
            context.samples += [(model.name, request) for request in begun]
        await future
    except BaseException:
        for request in begun:
            if request not in finished:
                model.dispatcher.cancel(request)
        front.admission.release(count - len(finished))
        raise
    return list(begun)
