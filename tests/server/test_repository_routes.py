from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from starlette.testclient import TestClient

from server.app import create_app
from server.settings import Settings

if TYPE_CHECKING:
    from tests.conftest import Images

JPEG = {"content-type": "image/jpeg"}
NAME = "cifar10-resnet56"
INDEX, LOAD, UNLOAD = (
    "/v2/repository/index",
    f"/v2/repository/models/{NAME}/load",
    f"/v2/repository/models/{NAME}/unload",
)


def put_version(root: Path, bundle: Path, version: str, name: str = NAME) -> Path:
    """Put a copy of a bundle into a repository."""
    folder = root / name / version
    shutil.copytree(bundle, folder)
    manifest = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps({**manifest, "name": name}))
    return folder


@pytest.fixture
def repository(tmp_path: Path, shipped_bundle: Path) -> Path:
    put_version(tmp_path, shipped_bundle, "1")
    return tmp_path


@pytest.fixture
def serve(repository: Path) -> Iterator[Callable[..., TestClient]]:
    """Makes a client of a server of the repository."""
    clients: list[TestClient] = []

    def start(**settings: Any) -> TestClient:
        given = {"repository": repository, "precision": "float32", "max_batch": 1, **settings}
        clients.append(TestClient(create_app(Settings(**given))).__enter__())
        return clients[-1]

    yield start
    for client in clients:
        client.__exit__(None, None, None)


def post(client: TestClient, path: str, body: object = None) -> Any:
    answer = client.post(path, json=body) if body is not None else client.post(path)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_versions_are_swapped_chosen_and_unloaded(
    serve: Callable[..., TestClient], repository: Path, shipped_bundle: Path, images: Images
) -> None:
    client = serve()

    def predict(query: str = "") -> Any:
        return client.post(f"/predict{query}", content=images.files[0], headers=JPEG)

    assert predict().json()["version"] == "1"
    client.put("/budget", json={"budget_ms": 7.5})
    put_version(repository, shipped_bundle, "10")
    put_version(repository, shipped_bundle, "9")
    assert post(client, LOAD) == {"name": NAME, "loaded": ["10"], "unloaded": ["1"]}
    assert predict().json()["version"] == "10"
    (budget,) = client.get("/budget").json()["models"]
    assert (budget["model"], budget["version"], budget["budget_ms"]) == (NAME, "10", 7.5)

    post(client, LOAD.replace(NAME, f"{NAME}@9"))
    assert predict(f"?model={NAME}").json()["version"] == "10"
    assert predict(f"?model={NAME}@9").json()["version"] == "9"
    assert predict(f"?model={NAME}&version=9").json()["version"] == "9"
    assert predict("?version=9").json()["version"] == "9"
    gone = predict(f"?model={NAME}@1")
    assert (gone.status_code, gone.json()["code"]) == (404, "unknown_model")
    assert "no version '1' loaded; name one of 9, 10" in gone.json()["detail"]
    text = client.post("/predict", json={"text": "x", "model": f"{NAME}@9"})
    assert text.status_code == 422

    listed = client.get("/budget", params={"model": NAME}).json()["models"]
    assert [each["version"] for each in listed] == ["9", "10"]
    (one,) = client.put(f"/budget?model={NAME}@9", json={"budget_ms": 3.0}).json()["models"]
    assert (one["version"], one["budget_ms"]) == ("9", 3.0)

    metrics = client.get("/metrics").text
    for version in ("9", "10"):
        assert f'eenet_predictions_total{{exit="0",model="{NAME}",version="{version}"}}' in metrics
    assert 'version="1"' not in metrics
    post(client, UNLOAD.replace(NAME, f"{NAME}@9"))
    assert 'version="9"' not in client.get("/metrics").text
    assert predict(f"?model={NAME}@9").status_code == 404
    states = {each["version"]: each["state"] for each in post(client, INDEX)}
    assert states == {"1": "UNAVAILABLE", "9": "UNAVAILABLE", "10": "READY"}
    (ready,) = post(client, INDEX, {"ready": True})
    assert ready == {"name": NAME, "version": "10", "state": "READY", "reason": ""}


def test_an_empty_repository_becomes_ready_with_its_first_model(
    serve: Callable[..., TestClient], repository: Path, shipped_bundle: Path, images: Images
) -> None:
    shutil.rmtree(repository / NAME)
    client = serve()
    refused = client.get("/readyz")
    assert refused.status_code == 503
    assert "no model is loaded; load one" in refused.json()["detail"]
    assert client.get("/livez").status_code == 200
    answer = client.post("/predict", content=images.files[0], headers=JPEG)
    assert (answer.status_code, answer.json()["code"]) == (404, "unknown_model")
    assert client.get("/budget").json() == {"models": []}
    assert client.get("/frontier").status_code == 404
    assert "no model is loaded" in client.put("/budget?model=x", json={"budget_ms": 1}).text
    assert client.get("/metrics").status_code == 200
    assert post(client, INDEX) == []
    put_version(repository, shipped_bundle, "1")
    assert post(client, LOAD)["loaded"] == ["1"]
    assert client.get("/readyz").status_code == 200
    answer = client.post("/predict", content=images.files[0], headers=JPEG)
    assert answer.json()["version"] == "1"
    refused = client.post(UNLOAD)
    assert (refused.status_code, refused.json()["code"]) == (422, "load_refused")


@pytest.fixture(scope="module")
def fixed(shipped_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A client of a server without a repository, with two models."""
    other = put_version(tmp_path_factory.mktemp("bundles"), shipped_bundle, "1", "other")
    settings = Settings(bundle=(shipped_bundle, other), precision="float32", max_batch=1)
    with TestClient(create_app(settings)) as client:
        yield client


def test_bundles_of_the_command_line_come_and_go_too(fixed: TestClient) -> None:
    assert [each["name"] for each in post(fixed, INDEX)] == [NAME, "other"]
    assert post(fixed, LOAD) == {"name": NAME, "loaded": [], "unloaded": []}
    assert post(fixed, UNLOAD)["unloaded"] == ["1"]
    assert f'model="{NAME}"' not in fixed.get("/metrics").text
    assert post(fixed, LOAD)["loaded"] == ["1"]
    assert f'model="{NAME}"' in fixed.get("/metrics").text


def test_feedback_on_the_answer_of_an_unloaded_model_is_refused(
    fixed: TestClient, images: Images
) -> None:
    query = f"/predict?model={NAME}"
    told = fixed.post(query, content=images.files[0], headers=JPEG).json()
    post(fixed, UNLOAD)
    answer = fixed.post("/feedback", json={"request_id": told["request_id"], "label": 0})
    assert (answer.status_code, answer.json()["code"]) == (404, "unknown_answer")
    assert "has been unloaded" in answer.json()["detail"]
    post(fixed, LOAD)
    assert (
        fixed.post("/feedback", json={"request_id": told["request_id"], "label": 0}).status_code
        == 404
    )


@pytest.mark.parametrize(
    ("path", "body", "status", "sentence"),
    [
        ("nosuch/load", None, 404, "there is no model 'nosuch' to load; --bundle of this server"),
        ("..%2Fx/load", None, 404, ""),
        ("nosuch/unload", None, 404, "no model 'nosuch' is loaded"),
        (f"{NAME}@7/load", None, 422, "there is no version '7'; there are 1"),
        (f"{NAME}/load", {"parameters": {"file:1/model.onnx": "eA=="}}, 422, "own folders alone"),
        (f"{NAME}/load", {"parameters": {"path": "/etc"}}, 422, "unknown field 'path'"),
        (f"{NAME}/load", {"path": "/etc"}, 422, "unknown field 'path'"),
        (f"{NAME}/load", {"parameters": {"config": "{"}}, 422, "parameters: config:"),
        (f"{NAME}/load", {"parameters": {"config": 3}}, 422, "parameters: config:"),
        (f"{NAME}/load", {"parameters": {"config": '{"backend": "x"}'}}, 422, "version_policy"),
        (f"{NAME}/load", [], 422, ""),
        (f"{NAME}/unload", {"parameters": {"x": 1}}, 422, "unknown field 'x'"),
    ],
)
def test_what_is_refused(
    fixed: TestClient, path: str, body: object, status: int, sentence: str
) -> None:
    answer = fixed.post(f"/v2/repository/models/{path}", json=body)
    assert answer.status_code == status, answer.text
    assert sentence in answer.json()["error"]
    assert len(post(fixed, INDEX, {"ready": True})) == 2


def test_what_triton_clients_send_is_taken(fixed: TestClient) -> None:
    config = json.dumps({"version_policy": {"specific": {"versions": [1]}}})
    body = {"parameters": {"config": config}}
    assert post(fixed, LOAD, body) == {"name": NAME, "loaded": [], "unloaded": []}
    assert len(post(fixed, INDEX, {"ready": False})) == 2


def test_pages_of_other_sites_load_nothing(fixed: TestClient) -> None:
    for path in (LOAD, UNLOAD):
        answer = fixed.post(path, headers={"sec-fetch-site": "cross-site"})
        assert answer.status_code == 403


def test_two_versions_of_one_model_by_bundle(shipped_bundle: Path, tmp_path: Path) -> None:
    other = put_version(tmp_path, shipped_bundle, "2")
    manifest = (other / "bundle.json").read_text().replace('"version": "1"', '"version": "2"')
    (other / "bundle.json").write_text(manifest)
    settings = Settings(bundle=(shipped_bundle, other), precision="float32", max_batch=1)
    with TestClient(create_app(settings)) as client:
        budgets = client.get("/budget", params={"model": NAME}).json()["models"]
        assert [each["version"] for each in budgets] == ["1", "2"]


def test_other_protocols_choose_versions_by_their_paths(
    serve: Callable[..., TestClient], repository: Path, shipped_bundle: Path, images: Images
) -> None:
    put_version(repository, shipped_bundle, "2")
    client = serve(version_policy="all")
    image = base64.b64encode(images.files[0]).decode()
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [image]}
    for path, version in (("", "2"), ("/versions/1", "1"), ("/versions/2", "2")):
        answer = post(client, f"/v1/models/{NAME}{path}:predict", {"instances": [image]})
        assert answer["predictions"][0]["version"] == version
        about = client.get(f"/v2/models/{NAME}{path}").json()
        assert about["versions"] == (["1", "2"] if path == "" else [version])
        answer = post(client, f"/v2/models/{NAME}{path}/infer", {"inputs": [tensor]})
        assert answer["model_version"] == version
    for path in (f"/v2/models/{NAME}/versions/3/infer", f"/v1/models/{NAME}/versions/3:predict"):
        assert client.post(path, json={"inputs": [tensor]}).status_code == 404
    wrong = client.post(
        f"/v2/models/{NAME}/versions/1/infer", json={"inputs": [tensor], "model_version": "2"}
    )
    assert wrong.status_code == 422 and "model_version" in wrong.json()["detail"]
    twice = client.post(
        f"/v1/models/{NAME}:predict", json={"instances": [image], "parameters": {"version": "1"}}
    )
    assert twice.status_code == 422 and "the path names the model" in twice.json()["detail"]
    listed = client.get("/models").json()["models"]
    assert [(each["model"], each["version"]) for each in listed] == [(NAME, "1"), (NAME, "2")]
