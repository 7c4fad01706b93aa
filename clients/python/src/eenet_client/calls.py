"""Calls: what each sends, and how its answer is read; both clients send the same."""

import base64
import json
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Final, Generic, Literal, TypedDict, TypeVar

import httpx

from eenet_client.errors import AnswerUnreadable
from eenet_client.results import Budget, FeedbackTaken, Health, ItemError, Model, Prediction

Image = str | os.PathLike[str] | bytes
"""The path of an image file, or its bytes."""

Result = TypeVar("Result")
OTHER_IMAGE = "application/octet-stream"
MAGIC = ((b"\xff\xd8\xff", "image/jpeg"), (b"\x89PNG", "image/png"))


class Unchanged(Enum):
    """Stands for a value that a call leaves alone, where None means something."""

    UNCHANGED = "unchanged"


UNCHANGED: Final = Unchanged.UNCHANGED


class PredictOptions(TypedDict, total=False):
    """Options of a prediction.

    Attributes:
        model: Name of a loaded model; needed if several read this input.
        budget_ms: Mean-latency budget of this request alone.
        deadline_ms: Hard limit, counted from the arrival at the server.
        top_k: Classes to list.
        trace: Whether the answer holds the output of every exit that the sample passed.
        priority: 0 goes first, 3 last.
        request_id: Id of the request, 1 to 128 of A-Z, a-z, 0-9, `.`, `_` and `-`; default: a
            random one.
    """

    model: str
    budget_ms: float
    deadline_ms: float
    top_k: int
    trace: bool
    priority: int
    request_id: str


@dataclass(frozen=True, slots=True)
class Call(Generic[Result]):
    """One request and how to read its answer.

    Attributes:
        method: Of HTTP.
        path: Below the base URL.
        read: Returns the result of a successful answer.
        query: Parameters of the URL.
        headers: Further headers.
        content: The body.
        is_repeatable: Whether it may be sent again where nobody knows if the server got it.
        accepted: Statuses beside 2xx that are answers, too.
    """

    method: str
    path: str
    read: Callable[[httpx.Response], Result]
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes = b""
    is_repeatable: bool = True
    accepted: frozenset[int] = frozenset()

    def result(self, response: httpx.Response) -> Result:
        """Read an answer.

        Raises:
            AnswerUnreadable: If it is not what the server sends.
        """
        try:
            return self.read(response)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _unreadable(response, repr(error)) from error


def require_events(response: httpx.Response) -> None:
    """Check that an answer is a stream of events.

    Raises:
        AnswerUnreadable: If it is not.
    """
    kind = response.headers.get("content-type", "no type")
    if kind.partition(";")[0].strip().lower() != "text/event-stream":
        raise _unreadable(response, f"{kind} in place of events")


def predict(
    image: Image | None, text: str | None, options: PredictOptions, path: str = "/predict"
) -> Call[Prediction]:
    """Predict one image or text.

    Raises:
        ValueError: If both or neither is given.
        OSError: If the image cannot be read.
    """
    if (image is None) == (text is None):
        raise ValueError("give an image or a text, and not both")
    headers, fields = _split(options)
    if image is None:
        content = _json({"text": text, **fields})
        return Call("POST", path, _prediction, {}, _json_headers(headers), content)
    content = _bytes_of(image)
    kinds = [kind for magic, kind in MAGIC if content.startswith(magic)]
    headers["content-type"] = kinds[0] if kinds else OTHER_IMAGE
    query = {name: _in_query(value) for name, value in fields.items()}
    return Call("POST", path, _prediction, query, headers, content)


def predict_list(
    images: Sequence[Image] | None, texts: Sequence[str] | None, options: PredictOptions
) -> Call[list[Prediction | ItemError]]:
    """Predict several images or texts.

    Raises:
        ValueError: If both or neither is given.
        OSError: If an image cannot be read.
    """
    headers, fields = _split(options)
    if (images is None) == (texts is None):
        raise ValueError("give images or texts, and not both")
    if isinstance(images, str | bytes | os.PathLike) or isinstance(texts, str):
        raise ValueError("give a list, or use predict() for one image or text")
    if images is not None:
        encoded = [base64.b64encode(_bytes_of(each)).decode() for each in images]
        content = _json({"images": encoded, **fields})
    else:
        content = _json({"texts": list(texts or ()), **fields})
    return Call("POST", "/predict", _predictions, {}, _json_headers(headers), content)


def get_budget(model: str | None) -> Call[list[Budget]]:
    """Read budgets."""
    return Call("GET", "/budget", _budgets, _of_model(model))


def set_budget(
    budget_ms: float | Unchanged | None,
    measure: Literal["compute", "end_to_end"] | Unchanged,
    max_disagreement: float | Unchanged,
    model: str | None,
) -> Call[list[Budget]]:
    """Change budgets; sent twice, a change is the same."""
    given = {
        "budget_ms": budget_ms,
        "measure": measure,
        "max_disagreement": max_disagreement,
    }
    fields = {name: value for name, value in given.items() if value is not UNCHANGED}
    return Call("PUT", "/budget", _budgets, _of_model(model), _json_headers({}), _json(fields))


def feedback(request_id: str, label: str | int) -> Call[FeedbackTaken]:
    """Send a true label; sent twice, it would count twice."""
    content = _json({"request_id": request_id, "label": label})
    return Call(
        "POST",
        "/feedback",
        lambda response: FeedbackTaken.parse(response.json()),
        headers=_json_headers({}),
        content=content,
        is_repeatable=False,
    )


def get_models() -> Call[list[Model]]:
    """Read which models are loaded."""
    return Call(
        "GET", "/models", lambda response: [Model.parse(each) for each in response.json()["models"]]
    )


def get_metrics() -> Call[str]:
    """Read the metrics as Prometheus text."""
    return Call("GET", "/metrics", lambda response: response.text)


def get_health(path: str) -> Call[Health]:
    """Ask whether the server is live or ready; its 503 is an answer."""
    return Call("GET", path, _health, accepted=frozenset({503}))


def _unreadable(response: httpx.Response, what: str) -> AnswerUnreadable:
    address = response.url.copy_with(query=None)
    return AnswerUnreadable(
        f"{address} answers what no EENet server sends ({what}); check the base URL"
    )


def _prediction(response: httpx.Response) -> Prediction:
    return Prediction.parse(response.json())


def _predictions(response: httpx.Response) -> list[Prediction | ItemError]:
    return [
        ItemError.parse(each["error"]) if "error" in each else Prediction.parse(each)
        for each in response.json()["predictions"]
    ]


def _budgets(response: httpx.Response) -> list[Budget]:
    return [Budget.parse(each) for each in response.json()["models"]]


def _health(response: httpx.Response) -> Health:
    if response.is_success:
        return Health(True, None)
    return Health(False, str(response.json()["detail"]))


def _split(options: PredictOptions) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the headers and the fields of options.

    All tries of a call have one id, so that feedback finds the prediction whichever try it is from.
    """
    fields: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    unknown = sorted(fields.keys() - PredictOptions.__annotations__.keys())
    if unknown:
        known = ", ".join(PredictOptions.__annotations__)
        raise TypeError(f"{unknown[0]!r} is no option of a prediction; there are {known}")
    return {"x-request-id": fields.pop("request_id", None) or uuid.uuid4().hex}, fields


def _bytes_of(image: Image) -> bytes:
    return image if isinstance(image, bytes) else Path(image).read_bytes()


def _in_query(value: object) -> str:
    return json.dumps(value) if isinstance(value, bool) else str(value)


def _json(fields: Mapping[str, object]) -> bytes:
    return json.dumps(fields, allow_nan=False).encode()


def _json_headers(headers: Mapping[str, str]) -> dict[str, str]:
    return {**headers, "content-type": "application/json"}


def _of_model(model: str | None) -> dict[str, str]:
    return {} if model is None else {"model": model}
