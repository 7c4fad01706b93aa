import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

REPO = Path(__file__).resolve().parent.parent


class Images(NamedTuple):
    """300 test images of CIFAR-10 (JPEG re-encoded), and their rows in the test set."""

    files: list[bytes]
    labels: list[int]
    rows: list[int]


@pytest.fixture(scope="session")
def images() -> Images:
    with np.load(REPO / "tests/data/cifar10_test_300.npz") as arrays:
        blob, off = arrays["blob"].tobytes(), arrays["off"].tolist()
        files = [blob[a:b] for a, b in itertools.pairwise(off)]
        return Images(files, arrays["y"].tolist(), arrays["row"].tolist())


@pytest.fixture(scope="session")
def shipped_bundle() -> Path:
    return REPO / "models/zoo/cifar10-resnet56"
