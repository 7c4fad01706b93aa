import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from models.export.onnx_graphs import Graphs, export_graphs, write_graphs
from models.networks.heads import Conv
from models.networks.multi_exit import MultiExitModel
from models.networks.resnet import cifar_resnet
from models.runtime.onnx_backend import OnnxBackend

MadeOnce = Callable[[str, Callable[[Path], object]], Path]
ExportedOnce = Callable[[str, Callable[[], Graphs]], Graphs]
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ("good", "bad", "film", "not", "very", "un", "##ly", "##ing", "##ish", "the", "a!")


@pytest.fixture(scope="session", autouse=True)
def exports(quick_exports: None) -> None:
    """Any test here may export."""


@pytest.fixture(scope="session")
def network() -> MultiExitModel:
    """Two exits for 8x8 images; stage and head 0 hold weights that are exact in half precision."""
    torch.manual_seed(1)
    model = cifar_resnet(8, 3, (1,), ((Conv(8, 2),),))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, 0.0, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0.0, 0.5)
    with torch.no_grad():
        for part in (model.stages[0], model.heads[0]):
            for value in part.parameters():
                value.copy_(value.half())
    return model


def write(graphs: Graphs, folder: Path) -> None:
    """As they are, where `write_graphs` stores weights in fewer bits."""
    for part, members in graphs._asdict().items():
        (folder / part).mkdir(parents=True)
        for k, graph in enumerate(members):
            onnx.save(graph, folder / part / f"{k}.onnx")


def read(folder: Path) -> Graphs:
    exits = range(len(list((folder / "stages").iterdir())))
    return Graphs(
        *([onnx.load(folder / part / f"{k}.onnx") for k in exits] for part in Graphs._fields)
    )


@pytest.fixture(scope="session")
def exported_once(made_once: MadeOnce) -> ExportedOnce:
    """Gives graphs by their name, which only one of the processes exports."""

    def once(name: str, export: Callable[[], Graphs]) -> Graphs:
        return read(made_once(f"graphs/{name}", lambda folder: write(export(), folder)))

    return once


@pytest.fixture(scope="session")
def graphs(network: MultiExitModel, exported_once: ExportedOnce) -> Graphs:
    """The network's graphs, in memory."""
    small, large = ((np.zeros((rows, 3, 8, 8), np.float32),) for rows in (2, 3))
    return exported_once("network", lambda: export_graphs(network, small, large))


@pytest.fixture(scope="session")
def exported(graphs: Graphs, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, OnnxBackend]:
    """Folder of the network's graphs, and the backend that the export returned."""
    folder = tmp_path_factory.mktemp("exported")
    return folder, write_graphs(graphs, folder)


@pytest.fixture(scope="session")
def word_pieces() -> dict[str, Any]:
    """Content of a `tokenizer.json` with 68 WordPiece tokens; the id of padding is 0."""
    letters = [*LETTERS, *(f"##{letter}" for letter in LETTERS)]
    vocabulary = {token: id for id, token in enumerate([*SPECIAL, *WORDS, *letters])}
    added = [
        {
            "id": vocabulary[token],
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for token in SPECIAL
    ]
    around = {
        token: {"id": token, "ids": [vocabulary[token]], "tokens": [token]}
        for token in ("[CLS]", "[SEP]")
    }
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    start, end = ({"SpecialToken": {"id": token, "type_id": 0}} for token in around)
    return {
        "version": "1.0",
        "truncation": {
            "direction": "Right",
            "max_length": 4,
            "strategy": "LongestFirst",
            "stride": 0,
        },
        "padding": {
            "strategy": {"Fixed": 4},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "[PAD]",
        },
        "added_tokens": added,
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [start, first, end],
            "pair": [start, first, end, second, end],
            "special_tokens": around,
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocabulary,
        },
    }


@pytest.fixture(scope="session")
def tokenizer(word_pieces: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `tokenizer.json` that truncates and pads to 4 tokens by default."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(json.dumps(word_pieces))
    return path
