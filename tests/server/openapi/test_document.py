from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from server import errors
from server.app import create_app, create_control_app
from server.control import Control
from server.errors import ServeError
from server.openapi.errors import CAUSES, statuses_of
from server.openapi.operations import OPERATIONS
from server.problems import PROBLEM_TYPE
from server.refusals import RefusalLog
from server.settings import Settings


def content_of(settings: Settings) -> bytes:
    content: bytes = create_app(settings).state.document.content
    return content


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return cast("dict[str, Any]", json.loads(content_of(Settings())))


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield method, path, operation


@pytest.mark.slow
def test_it_is_valid(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    OpenAPIV31SpecValidator(document).validate()


def test_every_reference_leads_somewhere_and_every_schema_is_used(document: dict[str, Any]) -> None:
    found = set(re.findall(r'"\$ref":\s*"(#[^"]*)"', json.dumps(document)))
    for reference in found:
        target: Any = document
        for part in reference.removeprefix("#/").split("/"):
            target = target[part]
    schemas = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert schemas - found == set()
    assert "$defs" not in json.dumps(document)


def test_operations_have_names_that_clients_can_use(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) for name in names)
    assert not [name for name in names if re.search(r"_(get|post|put)$", name)]
    assert {"predict", "infer", "infer_version", "get_budget", "put_budget"} <= set(names)
    assert all(name.isidentifier() for name in document["components"]["schemas"])


def test_the_table_of_operations_names_none_that_is_not_there(document: dict[str, Any]) -> None:
    assert set(OPERATIONS) <= {(method, path) for method, path, _ in operations(document)}


def test_each_operation_says_in_which_media_types_it_answers(document: dict[str, Any]) -> None:
    kinds = {}
    for _, _, operation in operations(document):
        content = operation["responses"]["200"]["content"]
        assert content and all("schema" in each for each in content.values())
        kinds[operation["operationId"]] = set(content)
    special = {name: found for name, found in kinds.items() if found != {"application/json"}}
    assert special == {
        "predict_stream": {"text/event-stream"},
        "get_audit_rows": {"application/octet-stream"},
        "get_metrics": {"text/plain", "application/openmetrics-text"},
        "infer": {"application/json", "application/octet-stream", "text/event-stream"},
        "infer_version": {"application/json", "application/octet-stream", "text/event-stream"},
    }


def test_errors_are_problems_everywhere(document: dict[str, Any]) -> None:
    for _, _, operation in operations(document):
        for status, response in operation["responses"].items():
            if status == "200":
                continue
            shared = document["components"]["responses"][response["$ref"].rpartition("/")[2]]
            (kind,) = shared["content"]
            assert kind == PROBLEM_TYPE
            assert shared["content"][kind]["schema"] == {"$ref": "#/components/schemas/Problem"}
            assert shared["content"][kind]["example"]["status"] == int(status)


def test_every_known_error_is_described() -> None:
    kinds = [each for each in vars(errors).values() if isinstance(each, type)]
    statuses = {k.status for k in kinds if issubclass(k, ServeError) and k is not ServeError}
    assert statuses - {405} == set(CAUSES), "405 is of methods that no operation has"


@pytest.mark.parametrize(
    ("path", "method", "has", "lacks"),
    [
        ("/predict", "post", {401, 404, 422, 429, 504}, set()),
        ("/v2/models/{model}/infer", "post", {404, 429, 504}, set()),
        ("/budget", "get", {401, 403, 404, 422}, {429, 504}),
        ("/livez", "get", {408, 414, 431, 503}, {401, 403, 404, 504}),
        ("/feedback", "post", {404, 429}, {504}),
    ],
)
def test_statuses_follow_from_the_route(
    path: str, method: str, has: set[int], lacks: set[int]
) -> None:
    found = set(statuses_of(path, method))
    assert has <= found and not lacks & found


@pytest.mark.slow
def test_all_apps_give_the_same_document() -> None:
    settings = Settings()
    app = create_control_app(cast("Control", Nothing()), cast("RefusalLog", None), settings)
    assert app.state.document.content == content_of(settings)
    assert app.state.document.content is app.state.document.content, "it is made once"


class Nothing:
    metrics = None


@pytest.mark.slow
def test_the_root_path_is_the_server() -> None:
    assert json.loads(content_of(Settings()))["servers"] == [{"url": "/"}]
    under = json.loads(content_of(Settings(root_path="/ml")))
    assert under["servers"] == [{"url": "/ml"}]


@pytest.mark.slow
def test_keys_are_described_where_they_are_needed(tmp_path: Path, document: dict[str, Any]) -> None:
    assert "securitySchemes" not in document["components"]
    assert not [each for _, _, each in operations(document) if "security" in each]
    keys = tmp_path / "keys"
    keys.write_text(f"sha256:{'0' * 64} ann\n")
    keys.chmod(0o600)
    keyed = json.loads(content_of(Settings(api_keys=keys)))
    schemes = keyed["components"]["securitySchemes"]
    assert set(schemes) == {"PredictionKey"} and schemes["PredictionKey"]["scheme"] == "bearer"
    needed = {path: each.get("security") for _, path, each in operations(keyed)}
    assert needed["/predict"] == needed["/v2"] == [{"PredictionKey": []}]
    assert needed["/budget"] is None and needed["/livez"] is None
