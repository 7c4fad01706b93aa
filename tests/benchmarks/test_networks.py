import argparse
from pathlib import Path

import pytest

from benchmarks.networks import named_variant
from models.bundle import load_bundle
from tests.benchmarks.peers.test_tasks import bundle_with


def test_a_bundle_is_named_with_or_without_a_precision(
    shipped_bundle: Path, tmp_path: Path
) -> None:
    folder = bundle_with(["int8", "float32"], shipped_bundle, tmp_path / "both:2")
    assert named_variant(f"{folder}:float32").precision == "float32"
    assert named_variant(f"{folder}:float32").bundle.folder == folder
    assert named_variant(str(folder)).precision == load_bundle(folder).precisions[0]


def test_a_missing_precision_or_bundle_is_one_sentence(
    shipped_bundle: Path, tmp_path: Path
) -> None:
    folder = bundle_with(["float32"], shipped_bundle, tmp_path / "single")
    with pytest.raises(argparse.ArgumentTypeError, match="holds no int8 network"):
        named_variant(f"{folder}:int8")
    with pytest.raises(argparse.ArgumentTypeError, match="does not exist"):
        named_variant(f"{folder}:int4")
