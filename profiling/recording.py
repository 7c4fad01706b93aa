"""Runs a whole dataset through every exit, preprocessed as the server does it."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from models.backend import StageBackend, State, join_states
from models.data.dataset import Split
from models.preprocess import ImagePreprocessor, Text, TextPreprocessor
from profiling.calibration import Predictions, record

CHUNK_ROWS = 500


def record_split(
    backend: StageBackend, preprocess: ImagePreprocessor | TextPreprocessor, split: Split
) -> Predictions:
    """Record the log-probabilities of every exit for every row of a split, (K, N, C)."""
    places, parts = [], []
    for rows, state in served_states(preprocess, split):
        places.append(rows)
        parts.append(record(backend, state, split.labels[rows]))
    back = np.argsort(np.concatenate(places))
    log_probs = np.concatenate([part.log_probs for part in parts], 1)[:, back]
    return Predictions(log_probs, np.concatenate([part.labels for part in parts])[back])


def first_rows(preprocess: ImagePreprocessor | TextPreprocessor, split: Split, rows: int) -> State:
    """Make one input of the first rows of a split; texts are padded to the longest of them."""
    if isinstance(preprocess, ImagePreprocessor):
        return preprocess.batch(np.asarray(split.inputs[:rows]))
    return preprocess.batch(texts_of(split)[:rows])


def texts_of(split: Split) -> Sequence[Text]:
    """Return the texts of a text split."""
    assert isinstance(split.inputs, list), "text readers return lists"
    return split.inputs


def served_states(
    preprocess: ImagePreprocessor | TextPreprocessor, split: Split
) -> Iterator[tuple[NDArray[np.intp], State]]:
    """Yield row numbers of a split and their input, rows of one shape together."""
    num_rows = len(split.labels)
    if isinstance(preprocess, ImagePreprocessor):
        for start in range(0, num_rows, CHUNK_ROWS):
            rows = np.arange(start, min(start + CHUNK_ROWS, num_rows))
            yield rows, preprocess.batch(np.asarray(split.inputs[start : start + CHUNK_ROWS]))
        return
    states = [preprocess(text).state for text in texts_of(split)]
    # A cascade may tokenise a text more than once.
    widths = np.array([[ids.shape[1] for ids in state[::2]] for state in states])
    for width in np.unique(widths, axis=0):
        rows = np.flatnonzero((widths == width).all(1))
        yield rows, join_states([states[row] for row in rows])
