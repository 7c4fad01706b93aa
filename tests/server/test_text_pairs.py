"""Pairs of texts, from the table to the answer over HTTP."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient
from tokenizers import Tokenizer, processors

from models.networks.attach import load_attached
from models.training.run import read_run
from server.app import create_app
from server.cli.main import main
from server.cli.options import separator_of
from server.settings import Settings

FIRST, SECOND = "the good film was", "a film was very dull"


@pytest.fixture(scope="module")
def pair_tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """The tests' tokenizer, which also joins pairs as that of BERT does."""
    own = Tokenizer.from_str(tokenizer.to_str())
    own.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return own


@pytest.fixture(scope="module")
def checkpoint(
    backbone: Path, pair_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A BERT that was fine-tuned on pairs, of two classes."""
    import transformers

    folder = tmp_path_factory.mktemp("pairs") / "checkpoint"
    shutil.copytree(backbone, folder)
    torch.manual_seed(0)
    names = {0: "same", 1: "other"}
    tuned = transformers.BertForSequenceClassification.from_pretrained(
        backbone, id2label=names, label2id={name: i for i, name in names.items()}
    )
    tuned.save_pretrained(folder)
    pair_tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_the_separator_of_a_pair_is_found(pair_tokenizer: Tokenizer, tokenizer: Tokenizer) -> None:
    assert separator_of(pair_tokenizer.to_str()) == 3


def test_the_last_exit_answers_pairs_as_the_fine_tuned_classifier(
    checkpoint: Path, pair_tokenizer: Tokenizer
) -> None:
    import transformers

    tuned = transformers.BertForSequenceClassification.from_pretrained(checkpoint).eval()
    encoding = pair_tokenizer.encode(FIRST, SECOND)
    ids, segments = torch.tensor([encoding.ids]), torch.tensor([encoding.type_ids])
    assert segments.sum() > 0
    _, model, head = load_attached(checkpoint, (1, 2), 2, separator_id=3)
    assert head == "kept"
    padded = torch.nn.functional.pad(ids, (0, 3))
    with torch.inference_mode():
        expected = tuned(ids, token_type_ids=segments).logits
        without = tuned(ids).logits
        found = model.eval()((padded, (padded != 0).long()))[-1]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(without, expected, atol=1e-4)


def write_table(path: Path) -> Path:
    random, lines = np.random.default_rng(0), set[str]()
    while len(lines) < 120:
        words = [" ".join(random.choice(("the", "film", "was", "good", "dull"), 4)) for _ in "ab"]
        lines.add(f"{words[0]},{words[1]},{'same' if len(lines) % 2 else 'other'}")
    path.write_text("premise,hypothesis,label\n" + "\n".join(sorted(lines)))
    return path


@pytest.fixture(scope="module")
def bundle(
    checkpoint: Path,
    tmp_path_factory: pytest.TempPathFactory,
    building_quickly: Callable[[], AbstractContextManager[None]],
) -> Path:
    folder = tmp_path_factory.mktemp("pair-bundle")
    table = write_table(folder / "d.csv")
    flags = ["--text-column", "premise,hypothesis", "--epochs", "1", "--batch-size", "8"]
    command = ["attach", "--backbone", checkpoint, "--exits", "1", "--dataset", table]
    assert main([*map(str, command), "--out", str(folder / "run"), *flags]) == 0
    run = read_run(folder / "run")
    assert run.input["pair"] is True and run.settings["separator_id"] == 3
    with building_quickly():
        assert main(["build", str(folder / "run"), "--out", str(folder / "b")]) == 0
    return folder / "b"


@pytest.fixture(scope="module")
def client(bundle: Path) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(bundle=(bundle,)))) as client:
        yield client


def posted(client: TestClient, body: dict[str, Any], status: int = 200) -> dict[str, Any]:
    response = client.post("/predict", json=body)
    assert response.status_code == status, response.text
    found: dict[str, Any] = response.json()
    return found


@pytest.mark.slow
def test_pairs_are_predicted_over_http(client: TestClient, bundle: Path, tmp_path: Path) -> None:
    one = posted(client, {"text": FIRST, "text_pair": SECOND})
    assert one["label"] in ("same", "other")
    turned = posted(client, {"text": SECOND, "text_pair": FIRST})
    assert turned["confidence"] != one["confidence"]
    both = posted(client, {"texts": [FIRST, SECOND], "text_pairs": [SECOND, FIRST]})
    assert both["predictions"][0]["confidence"] == pytest.approx(one["confidence"], abs=1e-4)
    assert both["predictions"][1]["confidence"] == pytest.approx(turned["confidence"], abs=1e-4)
    form = client.post("/predict", files={"text": (None, FIRST), "text_pair": (None, SECOND)})
    assert form.json()["confidence"] == pytest.approx(one["confidence"], abs=1e-4)


@pytest.mark.slow
def test_what_is_no_pair_is_one_sentence(client: TestClient) -> None:
    said = posted(client, {"text": FIRST}, 422)
    assert "the model reads pairs of texts; send the second as text_pair" in said["detail"]
    said = posted(client, {"text": FIRST, "text_pair": " "}, 422)
    assert "the text is empty" in said["detail"]
    said = posted(client, {"texts": [FIRST], "text_pairs": [FIRST, SECOND]}, 422)
    assert "2 text_pairs and 1 texts" in said["detail"]
    said = posted(client, {"text_pair": FIRST}, 422)
    assert "give exactly one of" in said["detail"] or "give the first as text" in said["detail"]


@pytest.mark.slow
def test_lines_with_a_tab_are_pairs(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.txt").write_text(f"{FIRST}\t{SECOND}\n")
    assert main(["predict", str(bundle), str(tmp_path / "t.txt")]) == 0
    assert "label" in json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_a_model_of_single_texts_refuses_a_pair(text_bundle: Path) -> None:
    with TestClient(create_app(Settings(bundle=(text_bundle,)))) as client:
        said = posted(client, {"text": FIRST, "text_pair": SECOND}, 422)
        assert "the model reads one text; leave text_pair out" in said["detail"]
