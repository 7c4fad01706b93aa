import io

import numpy as np
import pytest
from PIL import Image

from profiling.loadtest.variants import InputVariant, read_variant


def test_names_are_taken_apart_and_put_together() -> None:
    for name, form in (
        ("clean", InputVariant("clean", 0)),
        ("noise-3", InputVariant("noise", 3)),
        ("contrast-5", InputVariant("contrast", 5)),
    ):
        assert read_variant(name, "image") == form and form.name == name
    assert read_variant("shorter-8", "text") == InputVariant("shorter", 8)
    assert read_variant("misspelt-100", "text").name == "misspelt-100"


@pytest.mark.parametrize(
    ("name", "modality", "said"),
    [
        ("noise-6", "image", "up to severity 5"),
        ("noise", "image", "noise-1, blur-1"),
        ("noise--1", "image", "'noise--1'"),
        ("shorter-8", "image", "images have no form 'shorter-8'"),
        ("noise-3", "text", "texts have no form 'noise-3'"),
        ("shorter-0", "text", r"shorter-N \(N words\)"),
        ("misspelt-101", "text", "per cent"),
        ("", "text", "give clean"),
    ],
)
def test_a_form_that_there_is_not_is_one_sentence(name: str, modality: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_variant(name, modality)  # type: ignore[arg-type]


def test_clean_inputs_stay_as_they_are() -> None:
    clean, rng = read_variant("clean", "image"), np.random.default_rng(0)
    assert clean.of_images([b"no image"], rng) == [b"no image"]
    assert clean.of_texts(["a", "b"], [0, 1], rng) == ["a", "b"]


def test_images_and_texts_take_their_forms() -> None:
    rng, file = np.random.default_rng(0), io.BytesIO()
    Image.new("RGB", (8, 8), "grey").save(file, "PNG")
    corrupted = read_variant("noise-5", "image").of_images([file.getvalue()] * 2, rng)
    assert len({*corrupted, file.getvalue()}) == 3  # each has noise of its own
    texts = ["several simple words", "another sentence here"]
    assert read_variant("shorter-1", "text").of_texts(texts, [0, 1], rng) == ["several", "another"]
    doubled = read_variant("longer-2", "text").of_texts(texts, [0, 0], rng)
    assert doubled[0] == " ".join(texts)
    assert read_variant("misspelt-100", "text").of_texts(texts, [0, 1], rng) != texts
