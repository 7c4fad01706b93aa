"""Calls a server by the client that openapi-python-client has generated from its document."""

import json
import sys

from eenet_generated import Client
from eenet_generated.api.budget import put_budget
from eenet_generated.api.open_inference_protocol import infer
from eenet_generated.api.operations import get_models, readyz
from eenet_generated.api.prediction import predict
from eenet_generated.models import (
    BudgetChange,
    Budgets,
    InferenceAnswer,
    InferenceRequestBody,
    InputTensor,
    InputTensorDatatype,
    InputTensorName,
    ModelList,
    PredictBody,
    Prediction,
    Predictions,
    Problem,
    ReadyProbe,
    RequestedOutput,
)

TEXT = "Oil prices fell below 50 dollars a barrel."


def main(url: str) -> None:
    client = Client(base_url=url)
    one = predict.sync(client=client, body=PredictBody(text=TEXT, top_k=1))
    assert isinstance(one, Prediction)
    several = predict.sync(client=client, body=PredictBody(texts=[TEXT, ""]))
    assert isinstance(several, Predictions)
    refused = predict.sync(client=client, body=PredictBody(text=TEXT, model="nope"))
    assert isinstance(refused, Problem)
    budgets = put_budget.sync(client=client, body=BudgetChange(budget_ms=2.5))
    assert isinstance(budgets, Budgets)
    tensor = InputTensor(
        name=InputTensorName.TEXT, shape=[1], datatype=InputTensorDatatype.BYTES, data=[TEXT]
    )
    call = InferenceRequestBody(inputs=[tensor], outputs=[RequestedOutput(name="label")])
    tensors = infer.sync("ag-news-minilm", client=client, body=call)
    assert isinstance(tensors, InferenceAnswer)
    ready, models = readyz.sync(client=client), get_models.sync(client=client)
    assert isinstance(ready, ReadyProbe) and isinstance(models, ModelList)
    (news,) = [each for each in models.models if each.model == "ag-news-minilm"]
    answers = {
        "label": one.label,
        "list": [type(each).__name__ for each in several.predictions],
        "problem": refused.code,
        "budget_ms": budgets.models[0].budget_ms,
        "tensors": [each.name for each in tensors.outputs],
        "ready": ready.status,
        "exits": news.num_exits,
    }
    print(json.dumps(answers))


main(sys.argv[1])
