"""A classifier of another framework behind a real server."""

from collections.abc import Callable
from pathlib import Path

import pytest

from server.cli.main import main
from tests.e2e.conftest import StartServer
from tests.onnx_models import (
    COLOURS,
    colour_dataset,
    colour_images,
    exits_net,
    save,
    save_preprocessing,
)
from tests.server.pipeline.test_own_onnx import png

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture(scope="session")
def colours_bundle(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    def make(folder: Path) -> None:
        dataset = colour_dataset(folder / "colours")
        path = save(exits_net(), folder / "exits.onnx")
        flags = ["--preprocessing", str(save_preprocessing(folder)), "--calibration-size", "60"]
        given = ["--onnx", str(path), "--dataset", str(dataset), "--out", str(folder / "run")]
        assert main(["import", *given, *flags]) == 0
        out = ["--out", str(folder / "bundle"), "--name", "colours", "--policy", "maxprob"]
        assert main(["build", str(folder / "run"), *out]) == 0

    return made_once("bundles/colours", make) / "bundle"


def test_an_imported_network_answers(colours_bundle: Path, start_server: StartServer) -> None:
    with start_server("--bundle", str(colours_bundle)) as server:
        exits = set[int]()
        for budget_ms in (0.001, 1000):
            server.client.put("/budget", json={"budget_ms": budget_ms}).raise_for_status()
            right = 0
            for name, images in colour_images(5, seed=7).items():
                for pixels in images:
                    answer = server.client.post(
                        "/predict", content=png(pixels), headers={"content-type": "image/png"}
                    ).json()
                    assert answer["model"] == "colours" and answer["label"] in COLOURS
                    right += answer["label"] == name
                    exits.add(answer["exit"])
            assert right >= 10
        assert 0 in exits and 2 in exits
