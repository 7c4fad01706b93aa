"""Cascades of two networks over HTTP: each exit answers as its own network does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from models.bundle import Bundle
from server.pipeline.cascade import CascadeOptions, join_bundles
from tests.bundles import offline_log_probs
from tests.small_bundles import write_image_bundle, write_text_bundle

if TYPE_CHECKING:
    from tests.conftest import Images
    from tests.e2e.conftest import StartServer

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
WORDS = "[PAD] [UNK] good bad film the was very fine"


def join(
    small: Bundle,
    large: Bundle,
    quickly: Callable[[], AbstractContextManager[None]],
) -> Bundle:
    options, out = CascadeOptions("both", "maxprob"), small.folder.parent / "both"
    with quickly():
        return join_bundles([small.folder, large.folder], out, options, lambda step: None).bundle


def check(trace: list[dict[str, Any]], own: NDArray[np.float32], classes: Sequence[str]) -> None:
    """Compare what every exit showed with the probabilities of its network, (K, C)."""
    assert len(trace) == len(own)  # too few rows certify anything: all run to the last exit
    assert [exit["label"] for exit in trace] == [classes[best] for best in own.argmax(1)]
    confidences = [exit["confidence"] for exit in trace]
    np.testing.assert_allclose(confidences, own.max(1), atol=1e-3)


def test_images_of_two_sizes(
    start_server: StartServer,
    images: Images,
    tmp_path: Path,
    fitting_quickly: Callable[[], AbstractContextManager[None]],
) -> None:
    small = write_image_bundle(tmp_path / "small", 8, (0.7,))
    large = write_image_bundle(tmp_path / "large", 12, (0.8, 0.95), weights_seed=1)
    both = join(small, large, fitting_quickly)
    files = images.files[:8]
    own = [offline_log_probs(each.variant(), files) for each in (small, large)]
    expected = np.exp(np.concatenate(own)).swapaxes(0, 1)  # (N, K, C)
    with start_server("--bundle", str(both.folder)) as server:
        for file, exits in zip(files, expected, strict=True):
            answer = server.client.post(
                "/predict",
                params={"trace": "true"},
                content=file,
                headers={"content-type": "image/jpeg"},
            )
            trace = answer.raise_for_status().json()["trace"]
            check(trace, exits, both.manifest.classes)
        budget = {"budget_ms": 1000}
        assert server.client.put("/budget", json=budget).status_code == 200
        bad = server.client.post(
            "/predict", content=b"no image", headers={"content-type": "image/jpeg"}
        )
        assert bad.status_code == 422


def test_texts_of_two_tokenizers(
    start_server: StartServer,
    tmp_path: Path,
    fitting_quickly: Callable[[], AbstractContextManager[None]],
) -> None:
    tokenizers = []
    for words in (WORDS.split(), [*WORDS.split()[:2], *reversed(WORDS.split()[2:])]):
        tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = Whitespace()
        tokenizers.append(tokenizer)
    small = write_text_bundle(tmp_path / "small", tokenizers[0], (0.7,))
    large = write_text_bundle(
        tmp_path / "large", tokenizers[1], (0.95,), length_step=1, weights_seed=1
    )
    both = join(small, large, fitting_quickly)
    texts = ["good film", "the film was bad", "very fine"]
    own = [offline_log_probs(each.variant(), texts) for each in (small, large)]
    expected = np.exp(np.concatenate(own)).swapaxes(0, 1)
    with start_server("--bundle", str(both.folder)) as server:
        answer = server.client.post("/predict", json={"texts": texts, "trace": True})
        rows = answer.raise_for_status().json()["predictions"]
        for row, exits in zip(rows, expected, strict=True):
            check(row["trace"], exits, both.manifest.classes)
