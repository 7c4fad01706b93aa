import functools
import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models.backend import HeadOutput, Part, State, gather_arrays
from models.bundle import Task
from models.data.dataset import Dataset, Split
from models.export.onnx_graphs import as_tensors, export_graphs, largest_disagreement, write_graphs
from models.networks.families import FAMILIES, MODULES, Network, trainable_names
from models.networks.fcn import coarse_grid
from models.networks.heads import Conv
from models.networks.multi_exit import MultiExitModel
from models.runtime.onnx_backend import OnnxBackend
from models.training.batches import batches_for
from models.training.run import BEST, TrainConfig
from models.training.trainer import Trainer

C = 3
WORDS = ("good", "bad", "film", "very", "not", "ungood")
MOST_TOKENS = 16
ENCODER: dict[str, Any] = {
    "vocab_size": 80,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": MOST_TOKENS + 2,
}
EXITS = {"exits_after_layer": (1, 2), "num_labels": C}
MSDNET = {
    "base": 1,
    "step": 1,
    "step_mode": "even",
    "num_scales": 2,
    "num_channels": 4,
    "growth_factor": (1, 2),
    "prune": "max",
    "bn_factor": (1, 2),
    "num_blocks": 2,
    "growth_rate": 2,
    "bottleneck": True,
    "compression": 0.5,
    "reduction": 0.5,
    "data": "cifar10",
    "num_classes": C,
}
VIT = {"model_type": "vit", "image_size": 16, "patch_size": 4}
FCN = {"num_classes": C, "stem_width": 4, "widths": (6, 8), "dilations": ((), (1, 2))}


def attached(**backbone: Any) -> dict[str, Any]:
    return {"backbone": {**ENCODER, **backbone}, **EXITS}


NETWORKS = {
    "resnet8": Network("resnet8", {"num_classes": C, "exits": (1,), "heads": ((Conv(8, 2),),)}),
    "resnet18": Network("resnet18", {"num_classes": C, "exits": (3,), "heads": ((Conv(8, 1),),)}),
    "bottleneck": Network("resnet56_3", {"num_classes": C}),
    "densenet": Network("densenet121_4", {"num_classes": C}),
    "msdnet": Network("msdnet", MSDNET),
    "fcn": Network("fcn", FCN),
    "bert_4": Network("bert_4", {**ENCODER, **EXITS}),
    "bert": Network("attached-text", attached(model_type="bert")),
    "roberta": Network("attached-text", attached(model_type="roberta", pad_token_id=1)),
    "distilbert": Network(
        "attached-text",
        attached(model_type="distilbert", n_layers=2, dim=16, n_heads=2, hidden_dim=24),
    ),
    "vit": Network("attached-image", attached(**VIT)),
}


TEXTS = [name for name, network in NETWORKS.items() if network.family.task == "text"]
QUICK = ("resnet8", "bert")  # the others are trained and exported by the slow tests


def with_marks(names: Iterable[str]) -> list[Any]:
    """The names as parameters, of which all but `QUICK` are marked slow."""
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


class Trained(NamedTuple):
    """A network that was trained, read back and exported."""

    task: Task
    side: int
    model: MultiExitModel
    backend: OnnxBackend

    @property
    def pad_id(self) -> int:
        return int(getattr(self.model.stages[0][0], "pad_id", 0))

    def inputs(self, rows: int, tokens: int = 9) -> State:
        """Rows as stage 0 reads them; of texts the odd ones are shorter by a third."""
        rng = np.random.default_rng(rows)
        if self.task != "text":
            return (rng.normal(size=(rows, 3, self.side, self.side)).astype(np.float32),)
        ids, mask = rng.integers(3, 79, (rows, tokens)), np.ones((rows, tokens), np.int64)
        mask[1::2, tokens - tokens // 3 :] = 0
        return np.where(mask == 1, ids, self.pad_id), mask

    def answers(self, state: State) -> list[HeadOutput]:
        """What every exit says."""
        found = []
        for exit in range(self.backend.num_exits):
            state = self.backend.run_stage(exit, state)
            found.append(self.backend.run_head(exit, state))
        return found


def make_dataset(task: Task, side: int) -> Dataset:
    rng, labels = np.random.default_rng(0), np.arange(9) % C
    inputs: Any = rng.integers(0, 256, (9, side, side, 3), dtype=np.uint8)
    if task == "text":
        inputs = [" ".join(rng.choice(WORDS, rng.integers(1, 9))) for _ in range(9)]
    split = Split(inputs, rng.integers(0, C, (9, side, side)) if task == "segmentation" else labels)
    return Dataset(task, ("a", "b", "c"), split, split, split)


def side_of(network: Network) -> int:
    """Of images; oneDNN spoils bfloat16 kernels that step over maps of a single pixel."""
    return 32 if network.arch == "resnet18" else 16


def train(network: Network, model: MultiExitModel, out: Path, tokenizer: Path) -> None:
    """Two steps."""
    task = network.family.task
    image = {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}
    input = {"max_tokens": MOST_TOKENS, "pad_id": 0} if task == "text" else image
    config = TrainConfig(
        epochs=1, batch_size=4, peak_lr=0.001, optimizer="adamw" if task == "text" else "sgd"
    )
    batches = batches_for(task, input, tokenizer)
    dataset = make_dataset(task, side_of(network))
    trainer = Trainer(config, dataset, batches, out, model)
    (report,) = trainer.run(lambda step, loss: None, lambda report: None)
    assert np.isfinite(report.train_loss) and len(report.test_accuracy) == model.num_exits


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: Path,
    shortened: None,
) -> Callable[[str], Trained]:
    """Trains each of `NETWORKS` once."""

    @functools.cache
    def make(name: str) -> Trained:
        network, folder = NETWORKS[name], tmp_path_factory.mktemp(name)
        torch.manual_seed(0)
        model = network.build()
        with torch.no_grad():
            for value in model.parameters():
                if value.ndim < 3:  # no norm or bias is trivial then, and kernels stay small
                    value += 0.2 * torch.randn_like(value)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 0.5  # two steps are few to learn statistics in
        before = {key: value.clone() for key, value in model.named_parameters()}
        train(network, model, folder, tokenizer)
        after = model.named_parameters()
        moved = {key for key, value in after if not torch.equal(value, before[key])}
        for k in range(model.num_exits):
            assert {f"stages.{k}", f"heads.{k}"} <= {key[: key.index(".", 7)] for key in moved}

        settings = json.loads(json.dumps(network.settings))
        model = Network(network.arch, settings).build()
        model.load_state_dict(load_file(folder / BEST))
        made = Trained(network.family.task, side_of(network), model, OnnxBackend([], []))
        graphs = export_graphs(model, made.inputs(2, 8), made.inputs(3, 9))
        return made._replace(backend=write_graphs(graphs, folder))

    return make


@pytest.fixture(scope="module", params=with_marks(NETWORKS))
def made(request: pytest.FixtureRequest, trained: Callable[[str], Trained]) -> Trained:
    """Each of them in turn: processes that share this file seldom train the same one."""
    return trained(request.param)


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "tokens"), [(1, 3), (1, 16), (2, 9), (7, 5), (4, 13)])
def test_graphs_of_what_was_trained_agree_with_it(made: Trained, rows: int, tokens: int) -> None:
    state = made.inputs(rows, tokens)
    assert largest_disagreement(made.model, made.backend, state) < 1e-4
    with torch.inference_mode():
        expected = made.model(as_tensors(state))
    for logits, answer in zip(expected, made.answers(state), strict=True):
        np.testing.assert_allclose(answer.logits, logits, rtol=0, atol=1e-4)
        is_mask = made.task == "segmentation"
        assert logits.shape == ((rows, made.side, made.side, C) if is_mask else (rows, C))
        log_probs = coarse_grid(logits) if is_mask else logits.log_softmax(-1)
        np.testing.assert_allclose(answer.log_probs, log_probs, rtol=0, atol=1e-4)


def test_answers_differ_from_row_to_row_and_from_exit_to_exit(
    made: Trained,
) -> None:
    first, *later = (answer.logits for answer in made.answers(made.inputs(6)))
    assert first.std(0).min() > 5e-4
    for logits in later:
        assert logits.std(0).min() > 5e-4 and np.abs(logits - first).max() > 1e-2


def test_rows_do_not_depend_on_the_others_of_their_batch(
    made: Trained,
) -> None:
    state = made.inputs(5)
    together = made.answers(state)
    for row in range(5):
        answers = made.answers(gather_arrays([Part(state, [row])]))
        for alone, among in zip(answers, together, strict=True):
            for a, b in zip(alone, among, strict=True):
                np.testing.assert_allclose(a[0], b[row], rtol=0, atol=1e-4)


def test_rows_are_not_even_touched_by_what_is_no_number(
    made: Trained,
) -> None:
    state = made.inputs(5)
    strange = tuple(array.copy() for array in state)
    if made.task == "text":
        strange[0][[0, 1, 3, 4]] = 78
        strange[1][[0, 1]] = 0  # rows of padding alone
    else:
        strange[0][[0, 1, 3, 4]] = [[[[np.nan]]], [[[1e6]]], [[[-1e6]]], [[[np.inf]]]]
    for answer, among in zip(made.answers(state), made.answers(strange), strict=True):
        assert np.isfinite(answer.logits).all()
        for a, b in zip(answer, among, strict=True):
            np.testing.assert_allclose(a[2], b[2], rtol=0, atol=1e-6)


@pytest.mark.parametrize("made", with_marks(TEXTS), indirect=True)
@pytest.mark.parametrize("padding", [1, 7])
def test_padding_changes_no_answer(made: Trained, padding: int) -> None:
    ids, mask = made.inputs(4)
    wide = ((0, 0), (0, padding))
    padded = np.pad(ids, wide, constant_values=made.pad_id), np.pad(mask, wide)
    together = made.answers(padded)
    for short, long in zip(made.answers((ids, mask)), together, strict=True):
        np.testing.assert_allclose(short.logits, long.logits, rtol=0, atol=1e-4)
    for row in (1, 3):
        bare = ids[row : row + 1, :6], mask[row : row + 1, :6]
        for alone, among in zip(made.answers(bare), together, strict=True):
            np.testing.assert_allclose(alone.logits[0], among.logits[row], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_settings_survive_json(name: str, shortened: None) -> None:
    network = NETWORKS[name]
    model = network.build()
    again = Network(network.arch, json.loads(json.dumps(network.settings))).build()
    assert str(again) == str(model)
    again.load_state_dict(model.state_dict())
    x = Trained(network.family.task, side_of(network), model, OnnxBackend([], [])).inputs(2)
    with torch.inference_mode():
        assert torch.equal(again.eval()(as_tensors(x)), model.eval()(as_tensors(x)))


def test_the_table_lists_the_networks_of_every_module() -> None:
    for line in MODULES:
        module = importlib.import_module(f"models.networks.{line.module}")
        assert tuple(module.FAMILIES) == line.names
    assert len(FAMILIES) == sum(len(line.names) for line in MODULES)


def test_the_table_can_be_listed_without_torch() -> None:
    listing = (
        "import sys; from models.networks.families import describe_trainable; "
        "print(describe_trainable()); print('torch' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", listing], capture_output=True, text=True)
    described, torch_is_imported = shown.stdout.splitlines()
    assert torch_is_imported == "False"
    assert all(name in described for name in trainable_names())
    assert "attached" not in described


@pytest.mark.parametrize("arch", trainable_names())
def test_every_family_has_settings_to_train_with(arch: str) -> None:
    family = Network(arch).family
    with torch.device("meta"):  # where weights take no time
        model = Network(arch, {**family.defaults, family.classes: 7}).build()
    assert model.num_exits > 1
    last = list(model.heads[-1].parameters())[-1]
    assert last.shape == (7,)


@pytest.mark.parametrize(
    ("arch", "exits"), [("resnet8", (1, 1)), ("resnet20", (3, 3)), ("resnet56", (9, 9))]
)
def test_resnets_have_an_exit_after_each_third(arch: str, exits: tuple[int, ...]) -> None:
    model = Network(arch, {"num_classes": 2}).build()
    blocks = [len(stage) for stage in model.stages]
    assert (blocks[0] - 1, blocks[1]) == exits and blocks[2] == exits[0]


@pytest.mark.parametrize("exits", [[], [2], [1, 2], [1, 3, 5]])
def test_a_resnet_has_a_head_for_each_exit_if_none_are_given(exits: list[int]) -> None:
    model = Network("resnet20", {"num_classes": 2, "exits": exits}).build()
    assert model.num_exits == len(exits) + 1
    assert all(len(head.convs) > 0 for head in model.heads[:-1])
    assert model(torch.zeros(2, 3, 16, 16)).shape == (len(exits) + 1, 2, 2)


@pytest.mark.parametrize("arch", ["", "resnet", "resnet57", "BERT_4", "bert"])
def test_an_unknown_architecture_is_told_with_those_that_there_are(arch: str) -> None:
    told = f"architecture {arch!r} is unknown; use one of resnet8, resnet20, .*, fcn$"
    with pytest.raises(ValueError, match=told):
        Network(arch, {"num_classes": 2}).build()


@pytest.mark.parametrize(
    ("arch", "settings", "told"),
    [
        ("resnet8", {}, "of resnet8 lacks num_classes; its keys are num_classes, exits, heads$"),
        ("resnet8", {"num_classes": 2, "depth": 8}, "of resnet8 has no depth; its keys are"),
        ("resnet18", {"num_classes": 2}, "of resnet18 lacks exits; its keys are num_classes, ex"),
        ("resnet18", {"num_classes": 2, "exits": [1], "depth": 34}, "resnet18 has no depth;"),
        ("resnet56_3", {"classes": 2}, "lacks num_classes and has no classes; its keys are num"),
        ("densenet121_4", {"num_classes": 2, "growth": 12}, "has no growth; its keys are num_cl"),
        ("msdnet", {"num_classes": 2}, "of msdnet lacks data, base, step, step_mode, num_scales,"),
        ("bert_4", {"num_classes": 2}, "bert_4 lacks vocab_size, .* and has no num_classes;"),
        ("fcn", {"num_classes": 2, "depth": 3, "width": 4}, "of fcn has no depth, width; its k"),
        ("attached-text", {"num_labels": 2}, "attached-text lacks backbone, exits_after_layer;"),
        (
            "attached-image",
            {**EXITS, "backbone": {}, "exits": [1]},
            "attached-image has no exits",
        ),
    ],
)
def test_settings_that_are_missing_or_unknown_are_told(
    arch: str, settings: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError, match=f"the configuration .*{told}|{told}"):
        Network(arch, settings).build()


@pytest.mark.parametrize(
    ("arch", "settings", "told"),
    [
        ("resnet8", {"num_classes": 2, "exits": (2, 1)}, r"exits \[2, 1\] must rise"),
        (
            "resnet8",
            {"num_classes": 2, "exits": (1,), "heads": ((), ())},
            "1 early exits need as many heads, got 2",
        ),
        ("resnet8", {"num_classes": 2, "exits": 1}, "a setting of resnet8 has the wrong type"),
        ("fcn", {"num_classes": 2, "dilations": (1, 2, 4)}, "a setting of fcn has the wrong t"),
        ("resnet50", {"num_classes": 2, "exits": (16,)}, r"exits \[16\] must rise and lie between"),
        ("resnet56_3", {"num_classes": 0}, "num_classes is 0; it must be a number above 0"),
        ("densenet121_4", {"num_classes": "2"}, "num_classes is '2'; it must be a number above 0"),
        ("msdnet", {**MSDNET, "num_classes": -1}, "num_classes is -1; it must be a number above 0"),
        ("bert_4", {**ENCODER, **EXITS, "exits_after_layer": [1]}, "must rise .* last layer, 2"),
        ("attached-text", attached(model_type="t5"), "backbone of model_type 't5'; use bert,"),
    ],
)
def test_impossible_settings_are_told(arch: str, settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Network(arch, settings).build()
