"""Known answers: a few inputs of a network and the outputs that it must have on every host.

An int8 graph can be wrong without an error. Where a CPU has no instructions for 8-bit products, the
sum of two products saturates at 16 bits, and all that follows is off. So the builder of a bundle
records what its graphs mean, and a server compares that with what its own host computes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from models.backend import Part, StageBackend, State
from models.onnx_file import refuse_external_data

# Share of the spread of an exit's log-probabilities. Eight images through an int8 ResNet-56 with
# exact sums: 0.010 in the median of 100 draws, at most 0.021, because runtimes round differently
# and a rounded value may be one step higher. With sums that saturate: at least 0.053, 0.122 in the
# median. A MiniLM in int8: at most 0.013. Probabilities do not separate the two: an input whose
# classes are near each other moves by up to 0.11 by rounding alone, a sure one by nothing at all.
TOLERANCE = 0.033
SMALLEST_SPREAD = 1e-3  # a network without an opinion has nothing to compare with


class KnownAnswers(NamedTuple):
    """Inputs of R rows and the log-probabilities of every exit.

    Attributes:
        inputs: Input of the first stage.
        log_probs: (K, R, C); for segmentation (K, R, P, C).
    """

    inputs: State
    log_probs: NDArray[np.float32]


def record_known_answers(
    stages: Sequence[Path], heads: Sequence[Path], inputs: State
) -> KnownAnswers:
    """Run graphs node by node as they are written, in float, one row at a time.

    The runtime's optimisations turn the nodes of a quantised graph into integer kernels, which
    differ between CPUs. Without them the same graph computes in float, the same on every host.

    Args:
        stages: Files of the K stage graphs.
        heads: Files of the K exit heads.
        inputs: R rows of input.
    """
    states: list[State] = [
        tuple(array[row : row + 1] for array in inputs) for row in range(len(inputs[0]))
    ]
    exits = []
    for stage, head in zip(map(_plain_session, stages), map(_plain_session, heads), strict=True):
        states = [tuple(_run(stage, state)) for state in states]
        exits.append(np.concatenate([_run(head, state)[1] for state in states]))
    return KnownAnswers(inputs, np.stack(exits).astype(np.float32))


def save_known_answers(known: KnownAnswers, path: Path) -> None:
    """Write them as an npz."""
    inputs: dict[str, Any] = {f"input_{index}": array for index, array in enumerate(known.inputs)}
    np.savez_compressed(path, allow_pickle=False, log_probs=known.log_probs, **inputs)


def load_known_answers(path: Path) -> KnownAnswers:
    """Read a file of `save_known_answers`; nothing is unpickled.

    Raises:
        ValueError: If it is no such file; the message names it.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            inputs = tuple(arrays[f"input_{index}"] for index in range(len(arrays.files) - 1))
            return KnownAnswers(inputs, arrays["log_probs"])
    except Exception as error:  # numpy and zipfile raise a dozen types on a damaged archive
        raise ValueError(
            f"{path} holds no known answers ({error}); build the bundle again"
        ) from error


def largest_difference(backend: StageBackend, known: KnownAnswers) -> float:
    """Compare a backend's answers with the known ones.

    Returns:
        At the exit where it is largest: the root mean square difference of the log-probabilities,
        as a share of their root mean square distance from their row's mean. Infinite for answers
        that are not numbers.
    """
    rows = known.log_probs.shape[1]
    state = backend.gather([Part(known.inputs, range(rows))])
    largest = 0.0
    for exit, expected in enumerate(known.log_probs):
        state = backend.run_stage(exit, state)
        found = backend.run_head(exit, state).log_probs[:rows]  # without copies that fill a batch
        largest = max(largest, _relative_difference(_centred(found), _centred(expected)))
    return largest


def _relative_difference(found: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    spread = max(float(np.sqrt(np.mean(expected**2))), SMALLEST_SPREAD)
    difference = float(np.sqrt(np.mean((found - expected) ** 2))) / spread
    return difference if np.isfinite(difference) else np.inf


def _centred(log_probs: NDArray[np.floating]) -> NDArray[np.float64]:
    """Subtract each row's mean: a row's logits are known up to a constant."""
    values = log_probs.astype(np.float64)
    centred: NDArray[np.float64] = values - values.mean(-1, keepdims=True)
    return centred


def _plain_session(path: Path) -> ort.InferenceSession:
    refuse_external_data(path)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _run(session: ort.InferenceSession, state: State) -> list[NDArray[Any]]:
    names = [value.name for value in session.get_inputs()]
    return list(session.run(None, dict(zip(names, state, strict=True))))
