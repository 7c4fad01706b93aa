import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from profiling.loadtest.corruption import (
    CORRUPTIONS,
    corrupt,
    corrupted_file,
    longer,
    misspelt,
    shorter,
)

TEXT = "Government troops intervened in the latest outbreak of deadly fighting, officials said"


def image(side: int, mode: str = "RGB") -> Image.Image:
    """Coarse patches of colour with a fine pattern on them."""
    rng = np.random.default_rng(1)
    patches = np.kron(rng.uniform(50, 200, (4, 4, 3)), np.ones((side // 4, side // 4, 1)))
    fine = rng.uniform(-30, 30, (side, side, 1))
    return Image.fromarray((patches + fine).astype(np.uint8)).convert(mode)


def shades(image: Image.Image) -> NDArray[np.float64]:
    return np.asarray(image.convert("RGB"), np.float64)


def harm(kind: str, severity: int, side: int = 32) -> float:
    """Root mean square change of a shade."""
    clean = image(side)
    corrupted = corrupt(clean, kind, severity, np.random.default_rng(0))
    return float(np.sqrt(((shades(corrupted) - shades(clean)) ** 2).mean()))


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_an_image_keeps_its_size_and_suffers_with_severity(kind: str) -> None:
    for mode in ("RGB", "L", "RGBA", "P"):
        corrupted = corrupt(image(32, mode), kind, 3, np.random.default_rng(0))
        assert corrupted.size == (32, 32) and corrupted.mode == "RGB"
    harms = [harm(kind, severity) for severity in (1, 2, 3, 4, 5)]
    assert harms == sorted(harms) and len(set(harms)) == 5
    assert harms[0] > 1 and harms[-1] < 80


def test_each_corruption_does_what_its_name_says() -> None:
    clean = image(32)
    rng = np.random.default_rng(0)
    assert harm("noise", 5) == pytest.approx(255 * 0.1, rel=0.05)
    edges = [np.abs(np.diff(shades(each), axis=0)).mean() for each in (
        clean, corrupt(clean, "blur", 5, rng)
    )]  # fmt: skip
    assert edges[1] < 0.6 * edges[0]
    flat = shades(corrupt(clean, "contrast", 2, rng))
    assert flat.std((0, 1)) == pytest.approx(0.5 * shades(clean).std((0, 1)), rel=0.02)
    assert flat.mean((0, 1)) == pytest.approx(shades(clean).mean((0, 1)), abs=0.5)


def test_larger_images_take_stronger_levels() -> None:
    for kind in ("noise", "blur"):
        assert harm(kind, 2, side=256) > 1.1 * harm(kind, 2)
    large, same_quality = io.BytesIO(), io.BytesIO()
    image(256).save(large, "PNG")
    image(256).save(same_quality, "JPEG", quality=50)
    hard = corrupted_file(large.getvalue(), "jpeg", 2, np.random.default_rng(0))
    assert len(hard) < 0.8 * len(same_quality.getvalue())


def test_the_generator_decides_the_noise() -> None:
    one, same, other = (
        corrupt(image(32), "noise", 3, np.random.default_rng(seed)).tobytes() for seed in (0, 0, 1)
    )
    assert one == same != other


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_files_hold_the_same_image(kind: str) -> None:
    file = io.BytesIO()
    image(32).save(file, "PNG")
    data = corrupted_file(file.getvalue(), kind, 4, np.random.default_rng(0))
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.format == ("JPEG" if kind == "jpeg" else "PNG")
        corrupted = corrupt(image(32), kind, 4, np.random.default_rng(0))
        assert (shades(opened) == shades(corrupted)).all()


def test_an_unknown_corruption_is_one_sentence() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="'fog'; there are noise, blur, jpeg, contrast"):
        corrupt(image(32), "fog", 1, rng)
    file = io.BytesIO()
    image(32).save(file, "PNG")
    for kind in ("jpeg", "blur"):
        with pytest.raises(ValueError, match="is 6; give 1 to 5"):
            corrupted_file(file.getvalue(), kind, 6, rng)


def test_shorter_texts_are_the_first_words() -> None:
    assert shorter(TEXT, 3) == "Government troops intervened"
    assert shorter("one  two", 5) == "one two"


def test_longer_texts_are_joined_within_their_class() -> None:
    texts, labels = ["a", "b", "c", "d", "e"], ["x", "y", "x", "x", "y"]
    assert longer(texts, labels, 2) == ["a c", "b e", "c d", "d a", "e b"]
    assert longer(texts, labels, 3) == ["a c d", "b e b", "c d a", "d a c", "e b e"]
    assert longer(texts, labels, 1) == texts


def test_misspelt_texts_have_a_slip_in_the_share_of_words_asked_for() -> None:
    text = " ".join([TEXT] * 10)
    words = text.split()  # 90 of them are long enough
    for share, least, most in ((0.0, 0, 0), (0.5, 30, 60), (1.0, 80, 90)):
        slips = misspelt(text, share, np.random.default_rng(0)).split()
        changed = [old for old, new in zip(words, slips, strict=True) if old != new]
        assert least <= len(changed) <= most
        assert all(len(word.strip(",")) >= 4 for word in changed)
    assert misspelt(TEXT, 1.0, np.random.default_rng(0)) != misspelt(
        TEXT, 1.0, np.random.default_rng(1)
    )
