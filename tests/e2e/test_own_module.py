"""The torch example of docs/own-models.md, run as written, behind a real server."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents import ROOT, split_commands
from tests.e2e.conftest import StartServer
from tests.onnx_models import COLOURS, colour_dataset, colour_images
from tests.server.pipeline.test_own_onnx import png

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]


def run_example(folder: Path) -> Path:
    """Write the files of the page's section and run its commands; returns the bundle."""
    page = (ROOT / "docs/own-models.md").read_text(encoding="utf-8")
    section = page.partition("## A torch module")[2].partition("\n## ")[0]
    for name, text in re.findall(r"(?ms)^```python\n# (\S+\.py)\n(.*?)^```$", section):
        (folder / name).write_text(text)
    settings, commands = re.search(
        r"(?ms)^```json\n(.*?)^```$.*?^```sh\n(.*?)^```$", section
    ).groups()  # type: ignore[union-attr]
    (folder / "preprocessing.json").write_text(settings)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    *before_serving, serve = split_commands(commands)
    assert serve == ["eenet", "serve", "--bundle", "my-bundle"]
    for command in before_serving:
        start = ["-m", "server.cli.main"] if command[0] == "eenet" else []
        words = [sys.executable, *start, *command[1:]]
        subprocess.run(words, cwd=folder, env=environment, check=True)
    return folder / "my-bundle"


@pytest.fixture(scope="module")
def own_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    colour_dataset(folder / "photos")
    return run_example(folder)


def test_the_torch_example_is_served(own_bundle: Path, start_server: StartServer) -> None:
    with start_server("--bundle", str(own_bundle)) as server:
        right = 0
        for name, images in colour_images(5, seed=7).items():
            for pixels in images:
                answer = server.client.post(
                    "/predict", content=png(pixels), headers={"content-type": "image/png"}
                ).json()
                assert answer["model"] == "my-bundle" and answer["label"] in COLOURS
                right += answer["label"] == name
        assert right >= 10
