"""Open Inference Protocol with `"stream": true`: one row in, an event at each exit out."""

import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import numpy as np
from fastapi import Request, Response
from numpy.typing import NDArray

from models.backend import State
from server.batch import Caller
from server.engine.request import ExitTrace, InferenceRequest
from server.errors import InvalidContent
from server.event_stream import Event, OnDone, OnExit, start_stream, watch_exits
from server.front import Front, FrontModel
from server.open_inference import InferenceCall, Wanted
from server.request_context import current_request
from server.routes.answers import trace_json
from server.schemas import Options

AsFields = Callable[[InferenceRequest], dict[str, Any]]


async def stream_row(
    request: Request,
    front: Front,
    model: FrontModel,
    call: InferenceCall,
    options: Options,
    wanted: Sequence[Wanted],
    caller: Caller,
    as_fields: AsFields,
) -> Response:
    """Answer one row exit by exit.

    Args:
        request: The HTTP request.
        front: Limits it.
        model: Answers.
        call: What was read.
        options: The request's.
        wanted: Outputs of the last event.
        caller: The request's.
        as_fields: Returns the body of an ordinary answer to the row.

    Raises:
        InvalidContent: If there are several rows, or outputs are to come as bytes.
        ServeError: If the row is refused before its first exit.
    """
    if model.task == "segmentation":
        raise InvalidContent("parameters.stream: masks come with ordinary answers alone")
    if len(call.rows) != 1:
        raise InvalidContent(
            f"parameters.stream: a stream takes one row, not {len(call.rows)}; open one for each"
        )
    if any(each.binary for each in wanted):
        raise InvalidContent("parameters.stream: events hold JSON; leave binary outputs out")
    context = current_request.get()

    def begin(on_done: OnDone, on_exit: OnExit) -> InferenceRequest:
        begun = _begin(model, call, options, caller, on_done, on_exit)
        if context is not None:
            context.samples.append((model.name, begun))
        return begun

    async def events() -> AsyncGenerator[Event]:
        watched = watch_exits(front, model, begin, keeps_trace=False)
        async with contextlib.aclosing(watched) as passed:
            async for each in passed:
                if isinstance(each, ExitTrace):
                    yield Event("exit", trace_json(model, each))
                else:
                    yield Event("prediction", as_fields(each))

    return await start_stream(request, events())


def network_state(model: FrontModel, rows: NDArray[Any]) -> State:
    """Return what the network takes of images (N, ...): float32 ones are normalised already."""
    if rows.dtype == np.float32:
        return (rows,)
    return model.preprocess.batch(rows)  # type: ignore[arg-type]


def _begin(
    model: FrontModel,
    call: InferenceCall,
    options: Options,
    caller: Caller,
    on_done: OnDone,
    on_exit: OnExit,
) -> InferenceRequest:
    dispatcher, row_id = model.dispatcher, f"{caller.request_id}/0"
    given = options, caller.received_s
    if isinstance(call.rows, np.ndarray):
        state = network_state(model, call.rows)
        (begun,) = dispatcher.begin_rows(
            state, *given, [row_id], on_done, on_exit=on_exit, owner=caller.owner
        )
        return begun
    return dispatcher.begin(
        call.rows[0], *given, row_id, on_done, on_exit=on_exit, owner=caller.owner
    )
