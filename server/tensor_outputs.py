"""Output tensors of the Open Inference Protocol, made of the answers to N samples."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from server.engine.request import InferenceRequest, Prediction
from server.errors import InvalidContent
from server.front import FrontModel
from server.open_inference import Tensor, Wanted
from server.schemas import Options
from server.spelling import did_you_mean

ALWAYS: Final = ("probabilities", "class_id", "label", "exit", "latency_ms")
ON_DEMAND: Final = ("logits", "truncated", "deadline_exceeded")
BEST: Final = ("top_class_id", "top_label", "top_probability")  # with the parameter top_k
MASK: Final = "mask"
Array = NDArray[Any]
CLASSIFIABLE = ("probabilities", "logits")


def output_tensors(task: str, classes: int) -> list[dict[str, Any]]:
    """Describe the outputs of a model for a task that knows so many classes; N is -1."""
    outputs = [
        {"name": "probabilities", "datatype": "FP32", "shape": [-1, classes]},
        {"name": "class_id", "datatype": "INT64", "shape": [-1]},
        {"name": "label", "datatype": "BYTES", "shape": [-1]},
        {"name": "exit", "datatype": "INT64", "shape": [-1]},
        {"name": "latency_ms", "datatype": "FP32", "shape": [-1]},
    ]
    if task == "segmentation":
        return [*outputs, {"name": MASK, "datatype": "BYTES", "shape": [-1]}]
    return [*outputs, {"name": "logits", "datatype": "FP32", "shape": [-1, classes]}]


def chosen_outputs(
    wanted: Sequence[Wanted] | None,
    model: FrontModel,
    options: Options,
    *,
    binary: bool,
    ranked: bool,
) -> list[Wanted]:
    """Return the outputs to answer with.

    Args:
        wanted: Those that the request names; None: all that are not on demand.
        model: Answers.
        options: The request's.
        binary: Whether outputs that say nothing else come as bytes.
        ranked: Whether the request gives `top_k`.

    Raises:
        InvalidContent: If a name is unknown.
    """
    own = [MASK] if model.task == "segmentation" else []
    if wanted is None:
        names = [*ALWAYS, *own, *(BEST if ranked else ())]
        if options.raw_scores:
            names.append("logits")
        return [Wanted(name, binary) for name in names]
    known = (*ALWAYS, *ON_DEMAND, *BEST, *own)
    for each in wanted:
        if each.name not in known:
            hint = did_you_mean(each.name, known) or f"; name some of {', '.join(known)}"
            raise InvalidContent(f"{model.name} has no output {each.name!r:.80}{hint}")
        if each.classes and each.name not in CLASSIFIABLE:
            raise InvalidContent(
                f"classification of output {each.name!r}: only {' and '.join(CLASSIFIABLE)} have "
                f"classes to list"
            )
    return list(wanted)


class Outputs:
    """The answers to N samples, as tensors.

    Args:
        model: Answered them.
        served: The samples, all of them answered.
        masks: A PNG of each, of a model that draws masks.
        top_k: Classes to list in the outputs that list the best ones.
    """

    def __init__(
        self,
        model: FrontModel,
        served: Sequence[InferenceRequest],
        masks: Sequence[bytes],
        top_k: int,
    ) -> None:
        self._model, self._served, self._masks = model, served, masks
        self._predictions: list[Prediction] = [
            each.result for each in served if isinstance(each.result, Prediction)
        ]
        assert len(self._predictions) == len(served), "errors are answered before"
        self._probs = np.exp(_stacked(self._predictions, 1))
        if self._probs.ndim > 2:  # (N, P, C)
            self._probs = self._probs.mean(1)
        self._best = self._probs.argmax(1)
        self._top_k = min(top_k, len(model.classes))
        self._make: dict[str, Callable[[], Tensor]] = {
            "probabilities": lambda: self._floats("probabilities", self._probs),
            "class_id": lambda: self._integers("class_id", self._best),
            "label": lambda: self._labels("label", self._best),
            "exit": lambda: self._integers("exit", [each.exit for each in self._predictions]),
            "latency_ms": lambda: self._floats("latency_ms", [each.total_ms for each in served]),
            "logits": lambda: self._floats("logits", self._logits()),
            "truncated": lambda: self._flags("truncated", [each.truncated for each in served]),
            "deadline_exceeded": lambda: self._flags(
                "deadline_exceeded", [each.late for each in self._predictions]
            ),
            MASK: lambda: Tensor(MASK, "BYTES", self._masks, (len(served),)),
            "top_class_id": lambda: self._integers("top_class_id", self._ranking()),
            "top_label": lambda: self._labels("top_label", self._ranking()),
            "top_probability": lambda: self._floats(
                "top_probability", np.take_along_axis(self._probs, self._ranking(), 1)
            ),
        }

    def tensor(self, wanted: Wanted) -> Tensor:
        """Return one output.

        Raises:
            InvalidContent: If the model has no such output.
        """
        if wanted.classes:
            return self._classification(wanted)
        return self._make[wanted.name]()

    def _logits(self) -> Array:
        if self._model.task == "segmentation":
            raise InvalidContent(f"logits: {self._model.name} draws masks; ask for {MASK}")
        return _stacked(self._predictions, 0)

    def _ranking(self) -> Array:
        ranking: Array = np.argsort(-self._probs, axis=1, kind="stable")[:, : self._top_k]
        return ranking

    def _classification(self, wanted: Wanted) -> Tensor:
        """List the best classes as `VALUE:INDEX:LABEL`, as Triton does."""
        values = self._probs if wanted.name == "probabilities" else self._logits()
        count = min(wanted.classes, len(self._model.classes))
        ranking = np.argsort(-values, axis=1, kind="stable")[:, :count]
        texts = [
            f"{values[row, index]:f}:{index}:{self._model.classes[index]}"
            for row, indices in enumerate(ranking.tolist())
            for index in indices
        ]
        return Tensor(wanted.name, "BYTES", texts, ranking.shape)

    def _floats(self, name: str, values: Any) -> Tensor:
        array = np.asarray(values, "<f4")
        return Tensor(name, "FP32", array, array.shape)

    def _integers(self, name: str, values: Any) -> Tensor:
        array = np.asarray(values, "<i8")
        return Tensor(name, "INT64", array, array.shape)

    def _flags(self, name: str, values: Any) -> Tensor:
        array = np.asarray(values, np.bool_)
        return Tensor(name, "BOOL", array, array.shape)

    def _labels(self, name: str, class_ids: Array) -> Tensor:
        classes = self._model.classes
        texts = [classes[index] for index in class_ids.reshape(-1).tolist()]
        return Tensor(name, "BYTES", texts, class_ids.shape)


def _stacked(predictions: Sequence[Prediction], part: int) -> Array:
    """Return logits (part 0) or log-probabilities (part 1) of all rows."""
    return np.stack([each.batch_output[part][each.place] for each in predictions])
