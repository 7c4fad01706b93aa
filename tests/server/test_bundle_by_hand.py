"""The program in docs/bundle.md writes a bundle that is served; it uses nothing of this project."""

import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from models.bundle import load_bundle
from server.app import create_app
from server.cli.main import main
from server.settings import Settings

PAGE = Path(__file__).parents[2] / "docs/bundle.md"


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = re.search(r"(?ms)^```python\n(# write_bundle\.py\n.*?)^```$", PAGE.read_text())
    assert found is not None and not re.search(r"import (models|server|scheduler)", found[1])
    folder = tmp_path_factory.mktemp("by-hand")
    (folder / "write_bundle.py").write_text(found[1])
    command = [sys.executable, "write_bundle.py", "by-hand"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "by-hand"


def image(red: int, green: int, blue: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 40), (red, green, blue)).save(file, "PNG")
    return file.getvalue()


def test_it_is_served(by_hand: Path) -> None:
    with TestClient(create_app(Settings(bundle=(by_hand,)))) as client:
        for label, colours in (("red", (200, 90, 90)), ("blue", (90, 90, 200))):
            given = {"content": image(*colours), "headers": {"content-type": "image/png"}}
            answer = client.post("/predict", params={"trace": True}, **given).json()
            assert (answer["label"], answer["num_exits"]) == (label, 2)
        client.put("/budget", json={"budget_ms": 0.0001})
        early = client.post("/predict", **given).json()
        assert early["exit"] == 0
        frontier = client.get("/frontier").json()
        assert len(frontier) == 3


@pytest.mark.slow
def test_another_policy_is_fitted_to_it(by_hand: Path) -> None:
    assert main(["fit", str(by_hand), "--policy", "stopping"]) == 0
    assert set(load_bundle(by_hand).variant().entry.schedulers) == {"maxprob", "stopping"}


def test_every_field_of_the_manifest_is_documented(by_hand: Path) -> None:
    from models.bundle import ImageInput, Manifest, TextInput, VariantEntry

    text = PAGE.read_text()
    for kind in (Manifest, VariantEntry, ImageInput, TextInput):
        missing = [name for name in kind.model_fields if f"`{name}`" not in text]
        assert missing == [], kind.__name__


def test_pixels_are_compared_as_the_page_says(by_hand: Path) -> None:
    with np.load(by_hand / "float32/predictions.npz", allow_pickle=False) as arrays:
        accuracy = (arrays["test_log_probs"].argmax(-1) == arrays["test_labels"]).mean(1)
    assert 0.5 < accuracy[0] < accuracy[1]
