"""Variants of inputs by name: `clean`, `noise-3`, `shorter-8`."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from profiling.loadtest.corruption import (
    CORRUPTIONS,
    SEVERITIES,
    corrupted_file,
    longer,
    misspelt,
    shorter,
)

CLEAN = "clean"
TEXT_VARIANTS = {"shorter": "words", "longer": "texts in one", "misspelt": "per cent of the words"}
Modality = Literal["image", "text"]


class InputVariant(NamedTuple):
    """A change to inputs; the strength is a severity, words, texts in one, or per cent."""

    kind: str
    strength: int

    @property
    def name(self) -> str:
        """Its name on the command line and in logs."""
        return self.kind if self.kind == CLEAN else f"{self.kind}-{self.strength}"

    def of_images(self, files: Sequence[bytes], rng: np.random.Generator) -> list[bytes]:
        """Apply it to image files, (N,)."""
        if self.kind == CLEAN:
            return list(files)
        return [corrupted_file(file, self.kind, self.strength, rng) for file in files]

    def of_texts(
        self, texts: Sequence[str], labels: Sequence[Any], rng: np.random.Generator
    ) -> list[str]:
        """Apply it to texts, (N,); texts are joined within their class."""
        match self.kind:
            case "shorter":
                return [shorter(text, self.strength) for text in texts]
            case "longer":
                return longer(texts, labels, self.strength)
            case "misspelt":
                return [misspelt(text, self.strength / 100, rng) for text in texts]
            case _:
                return list(texts)


def read_variant(name: str, modality: Modality) -> InputVariant:
    """Parse the name of a variant.

    Raises:
        ValueError: If inputs of this modality have no such variant.
    """
    if name == CLEAN:
        return InputVariant(CLEAN, 0)
    kind, _, strength = name.partition("-")
    known = tuple(CORRUPTIONS) if modality == "image" else tuple(TEXT_VARIANTS)
    most = {"misspelt": 100, **dict.fromkeys(CORRUPTIONS, SEVERITIES[-1])}.get(kind)
    number = int(strength) if strength.isdecimal() else 0
    if kind not in known or number < 1 or (most is not None and number > most):
        raise ValueError(f"{modality}s have no form {name!r}; {_known_variants(modality)}")
    return InputVariant(kind, number)


def _known_variants(modality: Modality) -> str:
    if modality == "image":
        kinds = ", ".join(f"{kind}-1" for kind in CORRUPTIONS)
        return f"give {CLEAN} or one of {kinds}, up to severity {SEVERITIES[-1]}"
    kinds = ", ".join(f"{kind}-N (N {unit})" for kind, unit in TEXT_VARIANTS.items())
    return f"give {CLEAN} or one of {kinds}"
