"""Streams of the Open Inference Protocol: events at each exit, the response last."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from tests.server.test_other_protocols import TEXT, V2, V2_TEXT, both, refusal  # noqa: F401

if TYPE_CHECKING:
    from tests.conftest import Images

TENSOR = {"name": "text", "datatype": "BYTES", "shape": [1], "data": [TEXT]}


def events(client: TestClient, path: str, body: dict[str, Any]) -> list[tuple[str, Any]]:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = [block.split("\n") for block in answer.text.strip().split("\n\n")]
    return [(name.removeprefix("event: "), json.loads(data[6:])) for name, data in found]


@pytest.mark.parametrize("budget_ms", [1e-3, 1e6])
def test_a_row_is_answered_exit_by_exit(both: TestClient, budget_ms: float) -> None:  # noqa: F811
    body = {"inputs": [TENSOR], "parameters": {"budget_ms": budget_ms}}
    plain = both.post(V2_TEXT, json=body).json()
    body["parameters"] |= {"stream": True}  # type: ignore[call-overload]
    *exits, (name, response) = events(both, V2_TEXT, body)
    outputs = {each["name"]: each["data"] for each in response["outputs"]}
    assert name == "prediction" and [each for each, _ in exits] == ["exit"] * len(exits)
    assert [entry["exit"] for _, entry in exits] == list(range(outputs["exit"][0] + 1))
    assert exits[-1][1]["label"] == outputs["label"][0]
    expected = {each["name"]: each["data"] for each in plain["outputs"]}
    assert outputs["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-4)
    assert response["model_name"] == plain["model_name"] and response["id"]


def test_arrays_stream_too(both: TestClient, images: Images) -> None:  # noqa: F811
    about = both.get(V2.removesuffix("/infer")).json()
    size = next(each["shape"] for each in about["inputs"] if each["datatype"] == "UINT8")[1:]
    pixels = np.zeros((1, *size), np.uint8)
    tensor = {"name": "image", "datatype": "UINT8", "shape": list(pixels.shape)}
    body = {"inputs": [tensor | {"data": pixels.reshape(-1).tolist()}]}
    *exits, (_, response) = events(both, V2, body | {"parameters": {"stream": True}})
    assert exits and response["outputs"][0]["shape"][0] == 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"inputs": [TENSOR | {"shape": [2], "data": [TEXT, TEXT]}]}, "takes one row, not 2"),
        (
            {"outputs": [{"name": "label", "parameters": {"binary_data": True}}]},
            "leave binary outputs out",
        ),
        ({"parameters": {"stream": "yes"}}, "parameters.stream should be true or false"),
        ({"outputs": [{"name": "lable"}]}, "label"),
    ],
)
def test_what_no_stream_holds_is_refused(
    both: TestClient,  # noqa: F811
    change: dict[str, Any],
    sentence: str,
) -> None:
    body = {"inputs": [TENSOR], "parameters": {"stream": True}} | change
    assert sentence in refusal(both, V2_TEXT, body)


def test_without_the_wish_nothing_streams(both: TestClient) -> None:  # noqa: F811
    body = {"inputs": [TENSOR], "parameters": {"stream": False}}
    assert both.post(V2_TEXT, json=body).headers["content-type"] == "application/json"
