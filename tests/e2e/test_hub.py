"""Models and bundles of the hub, behind a real server; the hub is a stand-in."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from models.bundle import load_bundle
from tests.e2e.conftest import CLI, running_server
from tests.hub import Hub, running_hub
from tests.tiny_encoders import save_encoder, write_reviews

if TYPE_CHECKING:
    from tests.e2e.conftest import Server

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_hub() as hub:
        for name, value in {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "huggingface"),
            "HF_TOKEN": "hf_stand_in",
            "HF_HUB_DISABLE_XET": "1",
        }.items():
            monkeypatch.setenv(name, value)
        yield hub


def eenet(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *CLI, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def label_of(server: Server, text: str) -> str:
    return str(server.client.post("/predict", json={"text": text}).json()["label"])


def modules_of(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


def test_a_model_is_served_by_one_command_and_at_once_the_second_time(
    hub: Hub, tmp_path: Path
) -> None:
    hub.put_folder("org/tiny-bert", save_encoder(tmp_path / "tiny"))
    dataset = write_reviews(tmp_path / "reviews.csv")
    flags = [
        *("--model", "org/tiny-bert", "--dataset", dataset, "--epochs", 1),
        *("--cache", tmp_path / "cache"),
    ]
    with running_server(*map(str, flags), ready_within_s=240) as server:
        assert label_of(server, "the film was great") in ("blame", "praise")
        for pid in server.pids.values():
            assert "libtorch" not in modules_of(pid)
    (bundle,) = (tmp_path / "cache/models").glob("tiny-bert-*/bundle")
    assert load_bundle(bundle).manifest.num_exits == 2
    with running_server(*map(str, flags), ready_within_s=30) as server:
        assert label_of(server, "the film was dull") in ("blame", "praise")
    made = bundle.stat().st_mtime_ns
    assert time.time_ns() > made
    # Another revision of the model is another bundle; a pinned one is found again.
    first = hub.branches["org/tiny-bert"]["main"]
    hub.commit("org/tiny-bert", {"pytorch_model.bin": b"pickled"})
    with running_server(*map(str, flags), "--revision", first, ready_within_s=30):
        assert bundle.stat().st_mtime_ns == made
    assert not any("pytorch_model.bin" in asked for asked in hub.asked)


@pytest.mark.parametrize("kind", ["albert", "deberta-v2", "modernbert", "mpnet"])
def test_encoders_of_a_folder_are_served(tmp_path: Path, kind: str) -> None:
    model = save_encoder(tmp_path / kind, kind)
    dataset = write_reviews(tmp_path / "reviews.csv")
    flags = [
        *("--model", model, "--dataset", dataset, "--epochs", 1),
        *("--cache", tmp_path / "cache", "--front-ends", 0),
    ]
    with running_server(*map(str, flags), ready_within_s=240) as server:
        assert label_of(server, "the film was great") in ("blame", "praise")


def test_a_bundle_is_pushed_and_served_from_its_address(
    hub: Hub, tmp_path: Path, shipped_text_bundle: Path
) -> None:
    pushed = eenet("push", shipped_text_bundle, "org/news", "--json")
    assert pushed.returncode == 0, pushed.stderr
    sha = hub.branches["org/news"]["main"]
    assert json.loads(pushed.stdout) == {"name": "org/news", "commit": sha}
    cache = ("--cache", str(tmp_path / "cache"))
    for address in ("hf://org/news", f"hf://org/news@{sha}"):
        with running_server("--bundle", address, *cache, ready_within_s=60) as server:
            answer = label_of(server, "The striker scored twice in the final on Saturday.")
            assert answer == "Sports"


def test_what_the_hub_does_not_give_is_one_sentence(hub: Hub, tmp_path: Path) -> None:
    dataset = write_reviews(tmp_path / "reviews.csv")
    hub.create("org/pickled")
    hub.commit("org/pickled", {"config.json": b"{}", "pytorch_model.bin": b"pickled"})
    given = ("--dataset", dataset, "--cache", tmp_path / "cache")
    for words, sentence in (
        (("serve", "--bundle", "hf://org/absent"), "org/absent is not on http://127.0.0.1"),
        (("serve", "--bundle", "hf://news"), "hf://news is no address of a bundle; give hf://ORG"),
        (("serve", "--bundle", "hf://org/pickled"), "does not exist; give a folder that"),
        (("serve", "--model", "org/absent", *given), "org/absent is not on http://127.0.0.1"),
        (("serve", "--model", "org/pickled", *given), "org/pickled has no .safetensors"),
        (
            ("serve", "--model", "org/pickled", *given, "--revision", "v9"),
            "org/pickled has no such revision",
        ),
        (("serve", "--model", "no-folder", *given), "neither a folder nor ORG/NAME on the hub"),
        (("serve", "--model", "org/pickled"), "--model needs --dataset"),
        (("serve", "--dataset", dataset), "--dataset and --revision belong to --model"),
    ):
        ended = eenet(*words)
        assert ended.returncode == 2, ended.stderr
        assert sentence in ended.stderr.splitlines()[-1]
