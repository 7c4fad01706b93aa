"""The Python client against a real server, its documentation's examples, and its wheel."""

from __future__ import annotations

import asyncio
import hashlib
import re
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from eenet_client import (
    AsyncClient,
    Client,
    InvalidContent,
    ItemError,
    Prediction,
    Unauthorized,
)

if TYPE_CHECKING:
    from tests.conftest import Images
    from tests.e2e.conftest import Server

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]
PYTHON = re.compile(r"(?ms)^```python\n(.*?)^```$")
PAGES = ("docs/client.md", "clients/python/README.md")
EXAMPLES = [
    pytest.param(block, id=f"{page}-{place}")
    for page in PAGES
    for place, block in enumerate(PYTHON.findall((ROOT / page).read_text()))
]


@pytest.fixture(scope="module")
def server(start_server: Callable[..., AbstractContextManager[Server]]) -> Iterator[Server]:
    with start_server() as running:
        yield running


def test_predictions_lists_streams_and_feedback(server: Server, images: Images) -> None:
    with Client(str(server.client.base_url)) as client:
        assert client.ready() and client.live() and "eenet_" in client.metrics()
        for file in images.files[:5]:
            got = client.predict(image=file, trace=True, budget_ms=1e6)
            with client.stream(image=file, trace=True, budget_ms=1e6) as exits:
                outputs = list(exits)
                last = exits.prediction()
            assert got.trace is not None and len(got.trace) == len(outputs) == 3
            assert [each.label for each in outputs] == [each.label for each in got.trace]
            assert last.trace == tuple(outputs) and last.class_id == got.class_id
            assert client.feedback(last.request_id, got.class_id).correct
        good, bad = client.predict_list(images=[images.files[0], b"no image"])
        assert isinstance(good, Prediction) and isinstance(bad, ItemError)
        with pytest.raises(InvalidContent, match="the text is empty"):
            client.predict(text="")
        with pytest.raises(InvalidContent, match="the text is empty"), client.stream(text=""):
            pass


def test_budgets_come_back_as_they_were_set(server: Server) -> None:
    with Client(str(server.client.base_url)) as client:
        (changed,) = client.set_budget(2.5, measure="end_to_end", model="ag-news-minilm")
        assert (changed.budget_ms, changed.measure) == (2.5, "end_to_end")
        assert changed.promise == "budget"
        (back,) = client.set_budget(None, measure="compute", model="ag-news-minilm")
        assert (back.budget_ms, back.promise) == (None, "disagreement")
        assert {each.model for each in client.budget()} == {"ag-news-minilm", "cifar10-resnet56"}


def test_many_tasks_share_a_client(server: Server, images: Images) -> None:
    async def predict() -> list[Prediction]:
        async with AsyncClient(str(server.client.base_url)) as client:
            return await asyncio.gather(*[client.predict(image=file) for file in files])

    files, labels = images.files[:100], images.labels[:100]
    right = [
        got.class_id == label for got, label in zip(asyncio.run(predict()), labels, strict=True)
    ]
    assert sum(right) > 80


def test_a_key_is_sent(
    start_server: Callable[..., AbstractContextManager[Server]],
    shipped_bundle: Path,
    tmp_path: Path,
    images: Images,
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"sha256:{hashlib.sha256(b'secret-of-ann').hexdigest()} ann\n")
    flags = ("--bundle", str(shipped_bundle), "--api-keys", str(keys))
    with start_server(*flags) as server:
        url = str(server.client.base_url)
        with Client(url, key="secret-of-ann") as client, Client(url) as stranger:
            assert client.predict(image=images.files[0]).model == "cifar10-resnet56"
            with pytest.raises(Unauthorized, match="asks for a key"):
                stranger.predict(image=images.files[0])


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_runs_as_it_is_written(example: str, server: Server) -> None:
    code = example.replace("http://localhost:8000", str(server.client.base_url).rstrip("/"))
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT / "clients/python/src")},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0 and run.stdout, run.stderr


def test_the_wheel_brings_no_package_of_the_server(tmp_path: Path) -> None:
    source = tmp_path / "source"
    copy = "import shutil, sys; shutil.copytree(sys.argv[1], sys.argv[2])"
    subprocess.run([sys.executable, "-c", copy, ROOT / "clients/python", source], check=True)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")
    built = ("--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path))
    subprocess.run([*pip, "wheel", *built, str(source)], check=True)
    (wheel,) = tmp_path.glob("eenet_client-*.whl")
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv/bin/python"
    into = ("--python", str(python), "install", "-c", str(ROOT / "constraints.txt"))
    subprocess.run([*pip, *into, str(wheel)], check=True)
    check = (
        "import importlib.util, importlib.resources, eenet_client\n"
        "names = ('server', 'models', 'scheduler', 'profiling', 'numpy', 'fastapi')\n"
        "assert not any(map(importlib.util.find_spec, names))\n"
        "assert importlib.resources.files(eenet_client).joinpath('py.typed').is_file()\n"
        "print(eenet_client.Client().__class__.__name__, eenet_client.__version__)"
    )
    run = subprocess.run([python, "-c", check], cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout.startswith("Client 0."), run.stderr
