"""From an encoder in ONNX to answers over HTTP."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from starlette.testclient import TestClient
from tokenizers import Tokenizer

from server.app import create_app
from server.cli.main import main
from server.settings import Settings

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_builds")]

NAMES = ["input_ids", "attention_mask", "token_type_ids"]


class Scores(torch.nn.Module):
    """The classifier without the classes of transformers around its answer."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.model(
            input_ids=ids, attention_mask=mask, token_type_ids=types
        ).logits
        return scores


def export(backbone: Path, path: Path, *, dynamo: bool, length: int | None) -> None:
    """Write the encoder with a classifier, as either of torch's exporters does."""
    import transformers

    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification.from_pretrained(
        backbone, num_labels=2, attn_implementation="sdpa" if dynamo else "eager"
    )
    ids = torch.randint(5, 20, (2, length or 9))
    given = (ids, torch.ones_like(ids), torch.zeros_like(ids))
    axes = {0: "rows"} if length else {0: "rows", 1: "length"}
    more: dict[str, Any] = {"dynamic_axes": {name: axes for name in NAMES}}
    if dynamo:
        dims = {axis: torch.export.Dim(name) for axis, name in axes.items()}
        more = {"dynamic_shapes": (dims,) * 3, "verbose": False, "external_data": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older exporter is deprecated, and says so often
        torch.onnx.export(
            Scores(model).eval(), given, str(path), dynamo=dynamo, input_names=NAMES,
            output_names=["scores"], **more,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("dynamo", "length"), [(True, None), (False, None), (False, 16)], ids=["new", "old", "fixed"]
)
def test_exits_on_an_encoder(
    backbone: Path,
    tokenizer: Tokenizer,
    reviews: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    dynamo: bool,
    length: int | None,
) -> None:
    path = tmp_path / "bert.onnx"
    export(backbone, path, dynamo=dynamo, length=length)
    flags = ("--preprocessing", backbone, "--dataset", reviews, "--calibration-from", "train")
    more = ("--num-exits", 2, "--out", tmp_path / "run", "--epochs", 20, "--json")
    assert main([*map(str, ("attach", "--onnx", path, *flags, *more))]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["disagreement"] < 1e-4 and len(report["test_accuracy"]) == 2
    out = ("--out", tmp_path / "bundle", "--policy", "maxprob")
    assert main([*map(str, ("build", tmp_path / "run", *out))]) == 0
    text = "the film is good"
    with serving(tmp_path) as client:
        answer = client.post("/predict", json={"text": text, "trace": True}).json()
        several = client.post("/predict", json={"texts": [text, "it was bad", "dull"]}).json()
    assert answer["num_exits"] == 2 and answer["trace"][-1]["exit"] == answer["exit"]
    assert len(several["predictions"]) == 3
    last = ort.InferenceSession(path)
    encoding = tokenizer.encode(text)
    width = length or 8
    ids = np.zeros((1, width), np.int64)
    ids[0, : len(encoding.ids)] = encoding.ids
    given = {NAMES[0]: ids, NAMES[1]: (ids > 0).astype(np.int64), NAMES[2]: np.zeros_like(ids)}
    names = [value.name for value in last.get_inputs()]
    (scores,) = last.run(None, {name: given[name] for name in names})
    mine = run_graphs(tmp_path / "run", ids)
    np.testing.assert_allclose(mine, scores, atol=1e-4)


def run_graphs(run: Path, ids: np.ndarray) -> np.ndarray:
    """Logits of the last exit."""
    state: list[np.ndarray] = [ids, (ids > 0).astype(np.int64)]
    for name in ("stages/0", "stages/1", "heads/1"):
        session = ort.InferenceSession(run / f"{name}.onnx")
        inputs = [value.name for value in session.get_inputs()]
        state = session.run(None, dict(zip(inputs, state, strict=True)))
    return state[0]


def serving(folder: Path) -> TestClient:
    return TestClient(create_app(Settings(bundle=(folder / "bundle",), window=50)))


def test_the_tokenizer_of_another_network_is_refused(
    backbone: Path, reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bert.onnx"
    export(backbone, path, dynamo=False, length=None)
    tokens = json.loads((backbone / "tokenizer.json").read_text())
    words = tokens["model"]["vocab"]
    tokens["model"]["vocab"] = {name: id + 900 * (id > 10) for name, id in words.items()}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokens))
    flags = ("--dataset", reviews, "--calibration-from", "train", "--num-exits", 2)
    assert main([*map(str, ("attach", "--onnx", path, *flags, "--out", tmp_path / "run"))]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "check --preprocessing, and for texts that the tokenizer is the network's own" in said
