"""POST /classify, in the shape of vLLM's classification."""

import time
from typing import Any

from fastapi import APIRouter, Request, Response

from scheduler.combiner import probabilities
from server.batch import first_error, infer_payloads
from server.engine.request import InferenceRequest, Prediction
from server.errors import InvalidContent
from server.front import FrontModel, front_of
from server.protocol_schemas import Classification, ClassifyBody
from server.routes.answers import (
    PROBLEMS,
    caller_of,
    given_options,
    item_error,
    json_response,
    logits_of,
    most_items,
    parse_body,
    read_nested,
    require_one_label,
)
from server.sample_forms import samples_of, select_reader
from server.schemas import Options, Problem

router = APIRouter(tags=["other protocols"])

OWN_FIELDS = ClassifyBody.model_fields.keys() - Options.model_fields.keys()


@router.post(
    "/classify",
    response_class=Response,
    responses={
        200: {"model": Classification},
        **{code: {"model": Problem} for code in PROBLEMS},
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": ClassifyBody.model_json_schema()}},
        }
    },
)
async def classify(request: Request) -> Response:
    """Classify texts or images; answers as vLLM does."""
    front = front_of(request)
    given = await read_nested(request)
    body: ClassifyBody = parse_body(ClassifyBody, given)
    own = {name: value for name, value in given.items() if name not in OWN_FIELDS}
    options = given_options(request, own)
    if options.trace:
        raise InvalidContent("trace: this shape holds none; send POST /predict")
    if isinstance(body.input, list) and body.input and isinstance(body.input[0], int):
        raise InvalidContent("input holds token ids; send the text itself")
    samples, is_list = samples_of(body.input, "input", most_items(front))
    model = select_reader(front, options, samples)
    require_one_label(model)
    served = await infer_payloads(front, model, samples, options, caller_of(request))
    if not is_list and (error := first_error(served)) is not None:
        raise error
    tokens = sum([each.tokens for each in served])
    return json_response(
        {
            "id": f"classify-{request.state.request_id}",
            "object": "list",
            "created": int(time.time()),
            "model": model.name,
            "data": [
                {"index": index, **(item_error(request, each) or _entry(model, each, options))}
                for index, each in enumerate(served)
            ],
            "usage": {
                "prompt_tokens": tokens,
                "total_tokens": tokens,
                "completion_tokens": 0,
                "prompt_tokens_details": None,
            },
        }
    )


def _entry(model: FrontModel, served: InferenceRequest, options: Options) -> dict[str, Any]:
    prediction = served.result
    assert isinstance(prediction, Prediction), "only answered requests have predictions"
    probs = probabilities(prediction.batch_output.log_probs[prediction.place])
    entry = {
        "label": model.classes[int(probs.argmax())],
        "probs": probs.tolist(),
        "num_classes": len(model.classes),
    }
    if options.raw_scores:
        entry["logits"] = logits_of(model, served)
    return entry
