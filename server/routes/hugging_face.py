"""POST /predict in the shape of Hugging Face's inference endpoints.

`{"inputs": TEXT}` is answered `[[{"label", "score"}, ...]]`, a list of texts by one list each, the
best class first. An image in base64 is taken in place of a text.
"""

from typing import Any

from fastapi import Request, Response

from models.label_sets import label_probabilities
from scheduler.combiner import probabilities
from server.batch import first_error, infer_payloads
from server.engine.request import InferenceRequest, Prediction
from server.errors import InvalidContent
from server.front import FrontModel, front_of
from server.protocol_schemas import HuggingFaceBody, HuggingFaceParameters
from server.routes.answers import (
    JSON,
    caller_of,
    given_options,
    item_error,
    json_response,
    logits_of,
    media_type_of,
    most_items,
    parse_body,
    read_nested,
)
from server.sample_forms import samples_of, select_reader
from server.schemas import Options

FIELD = b'"inputs"'
OWN_FIELDS = HuggingFaceBody.model_fields.keys() - Options.model_fields.keys()
MOST_CLASSES, FEW_CLASSES = 1000, 5  # listed of a text, and of an image


async def answer_if_asked(request: Request) -> Response | None:
    """Answer a body of this shape; None if it has no `inputs`, or is no JSON."""
    if media_type_of(request) != JSON or FIELD not in await request.body():
        return None
    given = await read_nested(request)
    if "inputs" not in given:
        return None
    body: HuggingFaceBody = parse_body(HuggingFaceBody, given)
    front = front_of(request)
    parameters = dict(body.parameters or {})
    parse_body(HuggingFaceParameters, parameters)
    raw_scores = parameters.pop("function_to_apply", None) == "none"
    own = {name: value for name, value in given.items() if name not in OWN_FIELDS}
    parameters = {name: value for name, value in parameters.items() if value is not None}
    options = given_options(request, own, parameters)
    if options.trace:
        raise InvalidContent("trace: this shape holds none; send the field text or image")
    samples, is_list = samples_of(body.inputs, "inputs", most_items(front))
    model = select_reader(front, options, samples)
    served = await infer_payloads(front, model, samples, options, caller_of(request))
    if not is_list and (error := first_error(served)) is not None:
        raise error
    few = FEW_CLASSES if model.reads == "image" else MOST_CLASSES
    asked = {"top_k"} & {*request.query_params, *own, *parameters}
    count = options.top_k if asked else few
    raw_scores |= options.raw_scores
    return json_response(
        [
            item_error(request, each) or label_scores(model, each, count, raw_scores=raw_scores)
            for each in served
        ]
    )


def label_scores(
    model: FrontModel, served: InferenceRequest, count: int, *, raw_scores: bool
) -> list[dict[str, Any]]:
    """Return the best classes of an answer, with probabilities or with logits."""
    prediction = served.result
    assert isinstance(prediction, Prediction), "only answered requests have predictions"
    log_probs = prediction.batch_output.log_probs[prediction.place]
    if model.thresholds is not None:
        scores = label_probabilities(log_probs, model.thresholds[prediction.exit]).tolist()
    else:
        scores = probabilities(log_probs).tolist()
    if raw_scores:
        scores = logits_of(model, served)
    ranking = sorted(zip(scores, model.classes, strict=True), key=lambda each: -each[0])
    return [{"label": label, "score": score} for score, label in ranking[:count]]
