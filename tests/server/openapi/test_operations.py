"""The examples of the document are sent as they are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from jsonschema import Draft202012Validator
from starlette.testclient import TestClient

from server.app import create_app
from server.openapi.operations import EXAMPLE_ID, PATH_EXAMPLES
from server.settings import Settings

pytestmark = pytest.mark.slow

DOCUMENT = json.loads(create_app(Settings()).state.document.content)


class Example(NamedTuple):
    method: str
    path: str
    media_type: str
    body: Any
    query: dict[str, str]
    answers: dict[str, Any]  # schemas by media type


def examples() -> Iterator[Any]:
    for path, item in DOCUMENT["paths"].items():
        for method, operation in item.items():
            answers = operation["responses"]["200"]["content"]
            content = operation.get("requestBody", {}).get("content", {})
            sent = [(kind, each["example"]) for kind, each in content.items() if "example" in each]
            for each in content.get("application/json", {}).get("examples", {}).values():
                sent.append(("application/json", each["value"]))
            query = {
                each["name"]: each["example"]
                for each in operation.get("parameters", ())
                if each["in"] == "query" and "example" in each
            }
            assert sent or method == "get", f"{method} {path} has no example"
            for number, (kind, body) in enumerate(sent or [("", None)]):
                example = Example(method, path.format(**PATH_EXAMPLES), kind, body, query, answers)
                yield pytest.param(example, id=f"{operation['operationId']}-{number}")


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(create_app(Settings())) as client:
        given = {"text": "Oil prices fell below 50 dollars a barrel."}
        answer = client.post("/predict", json=given, headers={"X-Request-ID": EXAMPLE_ID})
        assert answer.status_code == 200
        yield client


@pytest.mark.parametrize("example", list(examples()))
def test_an_example_is_answered_in_the_shape_that_the_document_says(
    client: TestClient, example: Example
) -> None:
    given: dict[str, Any] = {"json": example.body}
    if example.media_type == "multipart/form-data":
        given = {"files": {name: (None, value) for name, value in example.body.items()}}
    answer = client.request(example.method, example.path, params=example.query, **given)
    assert answer.status_code == 200, answer.text
    if example.path.endswith("/unload"):
        assert client.post(example.path.replace("/unload", "/load")).status_code == 200
    media_type = answer.headers["content-type"].partition(";")[0]
    schema = example.answers[media_type]["schema"]
    if media_type == "application/json":
        whole = {**schema, "components": DOCUMENT["components"]}
        Draft202012Validator(whole).validate(answer.json())


def test_a_refusal_has_the_shape_of_a_problem(client: TestClient) -> None:
    problem = {"$ref": "#/components/schemas/Problem", "components": DOCUMENT["components"]}
    for path in ("/predict", "/v1/models/x:predict", "/v2/models/x/infer", "/classify"):
        answer = client.post(path, json={"nope": 1})
        assert answer.headers["content-type"] == "application/problem+json"
        Draft202012Validator(problem).validate(answer.json())
