import functools
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece

import server.engine.warmup
import server.pipeline.runs
import server.pipeline.variants
from models.bundle import PREDICTIONS, PROFILE, SCHEDULER_FILES, write_manifest
from models.training.trainer import Trainer
from profiling.calibration import Recorded, save_recorded
from server.app import create_app
from server.cli.main import main
from server.pipeline.refit import refit
from server.settings import Settings
from tests.bundles import SMALL_IMAGE

MadeOnce = Callable[[str, Callable[[Path], object]], Path]
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PRAISE, BLAME = ("good", "great", "fine"), ("bad", "awful", "dull")
FILLERS = ("the", "film", "was", "very", "and", "a")
TINY_BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "initializer_range": 0.3,  # large enough to tell texts apart
}
QUICKLY = ("--epochs", "1", "--batch-size", "8")
TINY_FCN = {"stem_width": 4, "widths": [4, 6], "dilations": [[], [1]]}


@pytest.fixture(scope="module", autouse=True)
def quick_warm_ups() -> Iterator[None]:
    """Every app that starts measures its costs in few rounds; `test_warmup.py` has all of them."""
    few = {"WARM_UP_ROUNDS": (1, 2), "COST_ROUNDS": (4, 10), "BATCH_ROUNDS": (2, 4)}
    with pytest.MonkeyPatch.context() as patch:
        for name, rounds in few.items():
            patch.setattr(server.engine.warmup, name, rounds)
        patch.setattr(server.engine.warmup, "OVERHEAD_ROUNDS", 10)
        yield


@pytest.fixture(scope="module")
def client(shipped_bundle: Path) -> Iterator[TestClient]:
    """A client of an app that serves the shipped bundle in single precision."""
    settings = Settings(bundle=(shipped_bundle,), precision="float32", window=100)
    with TestClient(create_app(settings)) as client:
        yield client


@pytest.fixture(scope="session")
def refitted(
    shipped_bundle: Path,
    tmp_path_factory: pytest.TempPathFactory,
    fitting_quickly: Callable[[], AbstractContextManager[None]],
) -> Callable[[str], Path]:
    """Makes copies of the shipped bundle; in each one policy is fitted, in single precision."""

    @functools.cache
    def copy(policy: str) -> Path:
        folder = tmp_path_factory.mktemp(policy) / "bundle"
        shutil.copytree(shipped_bundle, folder)
        with fitting_quickly():
            refit(folder, policy=policy, precision="float32")
        return folder

    return copy


def write_bundle(folder: Path, recorded: Recorded) -> Path:
    """Write a bundle of predictions at 3 exits; graphs and scheduler are stand-ins."""
    graphs = [f"{part}/{k}.onnx" for part in ("stages", "heads") for k in range(3)]
    for name in (*(f"schedulers/maxprob/{file}" for file in SCHEDULER_FILES), *graphs):
        (folder / "float32" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "float32" / name).write_bytes(f"stand-in for {name}".encode())
    (folder / "float32" / PROFILE).write_text(json.dumps({"costs_ms": [1.0, 2.0, 3.3]}))
    save_recorded(recorded, folder / "float32" / PREDICTIONS)
    write_manifest(
        folder,
        name="pets",
        version="4",
        task="image",
        classes=("ape", "bee", "cat", "dog"),
        num_exits=3,
        inputs={"image": SMALL_IMAGE},
        precisions={
            "float32": {
                "folder": "float32",
                "predictions": f"float32/{PREDICTIONS}",
                "schedulers": {"maxprob": "float32/schedulers/maxprob"},
                "policy": "maxprob",
                "default_budget_ms": 1.5,
            }
        },
        training={"epochs": 3},
    )
    return folder


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[[Recorded], Path]:
    """Makes bundles of predictions at 3 exits; graphs and scheduler are stand-ins."""
    return lambda recorded: write_bundle(tmp_path / "work" / "bundle", recorded)


def run(*arguments: object) -> None:
    """A command that must succeed."""
    assert main([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="session")
def building_quickly(
    fitting_quickly: Callable[[], AbstractContextManager[None]],
    quick_exports: None,
) -> Callable[[], AbstractContextManager[None]]:
    """Makes contexts in which little is fitted and few rounds are timed."""

    @contextmanager
    def quickly() -> Iterator[None]:
        measure = functools.partial(server.pipeline.variants.measure_latency, warm_up=2, repeats=20)
        with fitting_quickly(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(server.pipeline.variants, "measure_latency", measure)
            yield

    return quickly


@pytest.fixture(scope="module")
def quick_builds(building_quickly: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    with building_quickly():
        yield


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Of WordPiece: the words of `reviews`, some that it never uses, and single characters."""
    unused = ("unseen", "##seen", "wordless")
    letters = [mark + chr(code) for mark in ("", "##") for code in range(ord("a"), ord("z") + 1)]
    words = [*SPECIAL, *PRAISE, *BLAME, *FILLERS, *unused, *letters]
    tokens = list(dict.fromkeys(words))
    tokenizer = Tokenizer(WordPiece({t: id for id, t in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


@pytest.fixture(scope="session")
def backbone(made_once: MadeOnce, tokenizer: Tokenizer) -> Path:
    """A BERT of two layers that has learnt nothing, as `save_pretrained` leaves it."""
    import transformers

    def save(folder: Path) -> None:
        torch.manual_seed(0)
        config = transformers.BertConfig(vocab_size=tokenizer.get_vocab_size(), **TINY_BERT)
        transformers.utils.logging.disable_progress_bar()
        transformers.BertModel(config).save_pretrained(folder)
        names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, **dict(zip(names, SPECIAL, strict=True))
        ).save_pretrained(folder)

    return made_once("backbone/tiny-bert", save)  # its path is in the runs that are shared


def write_reviews(path: Path, rows: int) -> None:
    """Write texts of 2 to 12 words, which praise or blame; the label is in the last word."""
    random, lines = np.random.default_rng(0), dict[str, str]()
    while len(lines) < rows:
        label = len(lines) % 2
        words = [
            *random.choice(FILLERS, random.integers(1, 12)),
            random.choice((BLAME, PRAISE)[label]),
        ]
        lines[" ".join(words)] = ("blame", "praise")[label]
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in lines.items()))


@pytest.fixture(scope="session")
def reviews(made_once: MadeOnce) -> Path:
    """120 texts as `write_reviews` writes them."""

    def write(folder: Path) -> None:
        folder.mkdir()
        write_reviews(folder / "reviews.csv", 120)

    return made_once("reviews", write) / "reviews.csv"


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen training and eight test images of noise for each of three classes, 8x8."""
    random, folder = np.random.default_rng(0), tmp_path_factory.mktemp("images")
    for part, rows in (("train", 16), ("test", 8)):
        for name in ("ape", "bee", "cat"):
            (folder / part / name).mkdir(parents=True)
            for index in range(rows):
                pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def drawing_few() -> Callable[[], AbstractContextManager[None]]:
    """Makes contexts in which the dataset `shapes` has few images."""

    @contextmanager
    def few() -> Iterator[None]:
        import models.data.shapes

        with pytest.MonkeyPatch.context() as patch:
            rows = {"TRAIN_ROWS": 16, "CALIBRATION_ROWS": 12, "TEST_ROWS": 6, "IMAGE_SIZE": 16}
            for name, value in rows.items():
                patch.setattr(models.data.shapes, name, value)
            yield

    return few


@pytest.fixture(scope="session")
def text_run(backbone: Path, reviews: Path, made_once: MadeOnce) -> Path:
    """What `eenet attach` makes of the tiny BERT and the reviews: two exits."""

    def attach(folder: Path) -> None:
        run("attach", "--backbone", backbone, "--exits", 1, "--dataset", reviews, "--out", folder,
            *QUICKLY)  # fmt: skip

    return made_once("runs/reviews", attach)


@pytest.fixture(scope="session")
def text_bundle(
    text_run: Path,
    made_once: MadeOnce,
    building_quickly: Callable[[], AbstractContextManager[None]],
) -> Path:
    """A bundle of `text_run`, by the name of reviews."""

    def build(folder: Path) -> None:
        with building_quickly():
            run("build", text_run, "--out", folder, "--policy", "maxprob")

    return made_once("bundles/reviews", build)


@pytest.fixture(scope="session")
def mask_run(
    made_once: MadeOnce,
    drawing_few: Callable[[], AbstractContextManager[None]],
) -> Path:
    """A tiny segmentation, two exits, of images of 16x16."""

    def train(folder: Path) -> None:
        folder.with_name("fcn.json").write_text(json.dumps(TINY_FCN))
        with drawing_few():
            run("train", "--arch", "fcn", "--dataset", "shapes", "--out", folder, *QUICKLY,
                "--settings", folder.with_name("fcn.json"))  # fmt: skip

    return made_once("runs/masks", train)


@pytest.fixture(scope="session")
def mask_bundle(
    mask_run: Path,
    made_once: MadeOnce,
    building_quickly: Callable[[], AbstractContextManager[None]],
    drawing_few: Callable[[], AbstractContextManager[None]],
) -> Path:
    """A bundle of `mask_run`, by the name of shapes."""

    def build(folder: Path) -> None:
        with building_quickly(), drawing_few():
            run("build", mask_run, "--out", folder, "--policy", "maxprob")

    return made_once("bundles/shapes", build)


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be trained or exported."""

    def never(*given: object) -> None:
        raise AssertionError("the mistake was not found before the long work")

    monkeypatch.setattr(Trainer, "run", never)
    monkeypatch.setattr(server.pipeline.runs, "export_graphs", never)


@pytest.fixture
def sentence(untrained: None, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must end with one sentence, before anything takes long."""

    def ending(*arguments: object) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 2
        said = capsys.readouterr().err
        *steps, last = said.splitlines()
        assert all(step.endswith(" ...") for step in steps), said
        assert last.startswith("eenet: "), said
        return last

    return ending
