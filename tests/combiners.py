"""Combiners and outputs of heads drawn at random."""

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from scheduler.combiner import Combiner

Array = NDArray[np.float64]

EXITS = 3
FORMS = st.lists(
    st.sampled_from(["none", "powers", "both", "products"]), min_size=EXITS, max_size=EXITS
)
SEEDS = st.integers(0, 2**32 - 1)


def random_combiner(forms: list[str], classes: int, seed: int = 0) -> Combiner:
    rng = np.random.default_rng(seed)
    pairs = classes * (classes + 1) // 2
    shapes = {
        "powers": lambda k: (k + 1,),
        "both": lambda k: (1 + 2 * (k + 1) * classes, classes),
        "products": lambda k: (1 + 2 * (k + 1) * classes + pairs, classes),
    }
    return Combiner(
        tuple(
            None if form == "none" else rng.normal(0.5, 0.5, shapes[form](k))
            for k, form in enumerate(forms)
        )
    )


def random_log_probs(rows: int, classes: int, seed: int = 0, spread: float = 4.0) -> Array:
    logits = spread * np.random.default_rng(seed).normal(size=(EXITS, rows, classes))
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))
