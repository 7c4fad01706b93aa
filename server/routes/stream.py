"""POST /predict/stream: one image or text in, an event at each exit out."""

import contextlib
from collections.abc import AsyncGenerator

from fastapi import APIRouter, Request, Response

from server.engine.request import ExitTrace, InferenceRequest
from server.errors import InvalidContent
from server.event_stream import EVENT_STREAM, Event, OnDone, OnExit, start_stream, watch_exits
from server.front import Front, FrontModel, front_of
from server.prediction_paths import PREDICT_STREAM
from server.request_context import current_request
from server.routes.answers import prediction_json, trace_json
from server.routes.predict import PROBLEMS, SAMPLE_REQUEST, Samples, read_samples

router = APIRouter(tags=["prediction"])

EXAMPLE = (
    'event: exit\ndata: {"exit":0,"label":"ship","confidence":0.97,"score":0.95,"threshold":0.71,'
    '"elapsed_ms":1.9}\n\nevent: prediction\ndata: {"model":"cifar10-resnet56", ...}\n\n'
)


@router.post(
    PREDICT_STREAM,
    response_class=Response,
    responses={
        200: {
            "description": "Server-sent events: `exit` at each exit, then `prediction` or `error`",
            "content": {EVENT_STREAM: {"schema": {"type": "string"}, "example": EXAMPLE}},
        },
        **PROBLEMS,
    },
    openapi_extra=SAMPLE_REQUEST,
)
async def predict_stream(request: Request) -> Response:
    """Classify one image or text; the output of every exit comes as soon as it is there."""
    samples = await read_samples(request)
    if samples.is_list:
        raise InvalidContent(
            f"a stream takes one {samples.modality}, not a list; open a stream for each, or send "
            f"the list to /predict"
        )
    front = front_of(request)
    options = samples.options
    model = front.select_model(options.model, samples.modality, version=options.version)
    return await start_stream(request, _events(request, front, model, samples))


async def _events(
    request: Request, front: Front, model: FrontModel, samples: Samples
) -> AsyncGenerator[Event]:
    state, options = request.state, samples.options
    (payload,) = samples.payloads
    context = current_request.get()

    def begin(on_done: OnDone, on_exit: OnExit) -> InferenceRequest:
        given = payload, options, state.received_s, state.request_id, on_done
        trace = None if context is None else context.trace
        begun = model.dispatcher.begin(*given, on_exit=on_exit, owner=state.owner, trace=trace)
        if context is not None:
            context.samples.append((model.name, begun))
        return begun

    watched = watch_exits(front, model, begin, keeps_trace=options.trace)
    async with contextlib.aclosing(watched) as passed:
        async for each in passed:
            if isinstance(each, ExitTrace):
                yield Event("exit", trace_json(model, each))
            else:
                yield Event("prediction", await prediction_json(model, each, options))
