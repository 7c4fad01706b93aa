from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from starlette.testclient import TestClient

from server.problems import format_validation_error
from server.schemas import BudgetChange, FeedbackGiven, ModelQuery, Options, PredictBody


@pytest.mark.parametrize(
    ("schema", "given", "sentence"),
    [
        (Options, {"budgetms": 1}, "unknown field 'budgetms'; did you mean 'budget_ms'?"),
        (PredictBody, {"imges": []}, "unknown field 'imges'; did you mean 'images'?"),
        (BudgetChange, {"mesure": "compute"}, "unknown field 'mesure'; did you mean 'measure'?"),
        (
            FeedbackGiven,
            {"requestId": "a"},
            "unknown field 'requestId'; did you mean 'request_id'?",
        ),
        (ModelQuery, {"modle": "a"}, "unknown field 'modle'; did you mean 'model'?"),
        (Options, {"colour": 1}, "unknown field 'colour'"),
        (
            BudgetChange,
            {"measure": "computed"},
            "measure: Input should be 'compute' or 'end_to_end', got 'computed'; did you mean "
            "'compute'?",
        ),
    ],
)
def test_a_field_that_was_meant_is_suggested(
    schema: type[BaseModel], given: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValidationError) as refused:
        schema.model_validate(given)
    assert format_validation_error(refused.value) == sentence


def test_body_query_and_form_of_the_routes_suggest_fields(client: TestClient) -> None:
    hint = "unknown field 'budgetms'; did you mean 'budget_ms'?"
    image = {"Content-Type": "image/jpeg"}
    for answer in (
        client.put("/budget", json={"budgetms": 1}),
        client.post("/predict", json={"text": "a", "budgetms": 1}),
        client.post("/predict?budgetms=1", content=b"x", headers=image),
        client.post("/predict", data={"budgetms": "1"}, files={"file": b"x"}),
    ):
        assert answer.status_code == 422 and answer.json()["detail"] == hint
    for path in ("/budget", "/audit", "/frontier"):
        answer = client.get(path, params={"modell": "a"})
        assert answer.status_code == 422
        assert answer.json()["detail"].endswith("unknown field 'modell'; did you mean 'model'?")


def test_a_label_that_was_meant_is_suggested(client: TestClient) -> None:
    asked = {"request_id": "mine"}
    with open("docs/images/ship.jpg", "rb") as file:
        client.post(
            "/predict",
            content=file.read(),
            headers={"Content-Type": "image/jpeg", "X-Request-ID": "mine"},
        )
    answer = client.post("/feedback", json={**asked, "label": "shipp"})
    assert answer.json()["detail"].endswith("has no class 'shipp'; did you mean 'ship'?")
