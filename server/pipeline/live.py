"""Audited traffic of a running server as a calibration set: fetched over HTTP and labelled."""

import io
import json
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any, NamedTuple, get_args
from urllib.parse import urlencode, urlsplit

import numpy as np
from numpy.typing import NDArray

from models.bundle import Manifest, Precision
from profiling.calibration import Predictions
from scheduler.confidence import SMALLEST_LOG
from scheduler.monitoring.temperature import draw_labels, fit_temperature
from server.client_key import advice, key_headers

MIN_ROWS = 500
TIMEOUT_S = 60.0
UNLABELLED = -1


class LiveRows(NamedTuple):
    """Audited samples of a server.

    Attributes:
        log_probs: Log-probabilities of every exit, (K, N, C).
        labels: True labels, -1 without feedback, (N,).
        precision: Precision of the graphs that they ran through.
    """

    log_probs: NDArray[np.floating]
    labels: NDArray[np.int64]
    precision: Precision


class Reloaded(NamedTuple):
    """The scheduler that a server uses after a reload: its name, and hash of its scheduler.npz."""

    policy: str
    sha256: str


class LiveServer:
    """One model of a running server.

    Args:
        url: Root of the server, such as http://localhost:8000.
        model: Name of the model there.
        key: Key of administration; None: the server needs none.

    Raises:
        ValueError: If the URL is not an HTTP one.
    """

    def __init__(self, url: str, model: str, key: str | None = None) -> None:
        if urlsplit(url).scheme not in ("http", "https"):
            raise ValueError(
                f"--from-live {url!r} is not the URL of a server; give one such as http://localhost:8000"
            )
        self.url = url.rstrip("/")
        self.model = model
        self._headers = dict(key_headers(key))

    def rows(self, manifest: Manifest) -> LiveRows:
        """Fetch the model's audited samples.

        Args:
            manifest: The manifest of the bundle to fit.

        Raises:
            ValueError: If the server does not answer, or the rows are too few or of another model.
        """
        content = self._ask("GET", "/audit/rows")
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                labels = arrays["labels"].astype(np.int64)
                rows = LiveRows(arrays["log_probs"], labels, _precision(str(arrays["precision"])))
        except Exception as error:  # numpy and zipfile raise a dozen types on a damaged archive
            raise ValueError(
                f"{self.url}/audit/rows answers no rows: {error}; check that it is a server of "
                f"`eenet serve`"
            ) from error
        self._check(rows, manifest)
        return rows

    def policy(self) -> str:
        """Return the name of the scheduler that the server uses.

        Raises:
            ValueError: If the server does not answer, or refuses.
        """
        (policy,) = self._read("/audit", self._ask("GET", "/audit"), "policy")
        return policy

    def reload(self, policy: str | None) -> Reloaded:
        """Let the server reload its schedulers.

        Args:
            policy: The one that it shall use under a budget; None: the same as before.

        Raises:
            ValueError: If the server does not answer, or refuses.
        """
        path, asked = "/scheduler/reload", None if policy is None else {"policy": policy}
        return Reloaded(*self._read(path, self._ask("POST", path, asked), "policy", "sha256"))

    def _read(self, path: str, content: bytes, *fields: str) -> list[str]:
        """Read fields of the one model that an answer is about."""
        try:
            (model,) = json.loads(content)["models"]
            return [str(model[field]) for field in fields]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.url}{path} does not name its scheduler; check that it is a server of "
                f"`eenet serve`"
            ) from error

    def _check(self, rows: LiveRows, manifest: Manifest) -> None:
        exits, classes = manifest.num_exits, len(manifest.classes)
        shape = rows.log_probs.shape
        if len(shape) != 3 or shape[::2] != (exits, classes) or rows.labels.shape != shape[1:2]:
            raise ValueError(
                f"{self.url} has rows {shape} and labels {rows.labels.shape} of {self.model}; the "
                f"bundle has {exits} exits and {classes} classes: name its model with --model"
            )
        if shape[1] < MIN_ROWS:
            raise ValueError(
                f"{self.url} has {shape[1]} audited rows of {self.model}, {MIN_ROWS} are needed; "
                f"wait for more, or serve with a larger --audit-share"
            )
        if rows.labels.min() < UNLABELLED or rows.labels.max() >= classes:
            raise ValueError(f"{self.url} has labels of {self.model} outside its {classes} classes")

    def _ask(self, method: str, path: str, fields: dict[str, str] | None = None) -> bytes:
        url = f"{self.url}{path}?{urlencode({'model': self.model})}"
        try:
            body = None if fields is None else json.dumps(fields).encode()
            kind = {} if body is None else {"Content-Type": "application/json"}
            headers = self._headers | kind
            request = urllib.request.Request(url, body, headers, method=method)
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                content: bytes = answer.read()
        except urllib.error.HTTPError as error:
            with error:
                reason = _detail(error.read()) or error.reason
            raise ValueError(
                f"{method} {url} was answered {error.code}: {reason}{advice(error.code)}"
            ) from error
        except (OSError, HTTPException) as error:  # the latter also for a bad port
            raise ValueError(
                f"{method} {url} failed: {error}; check that the server is running"
            ) from error
        return content


class LabelledRows(NamedTuple):
    """Live rows as a calibration set.

    Attributes:
        predictions: The rows with their labels.
        with_feedback: Number of labels that came from feedback.
        temperature: Temperature at which the others were drawn.
    """

    predictions: Predictions
    with_feedback: int
    temperature: float


def labelled(rows: Predictions, calibration: Predictions, seed: int) -> LabelledRows:
    """Give every row a label.

    Rows with feedback get their true label. For the others it is drawn from the last exit's
    probabilities, at the temperature at which its confidence on the calibration set equals its
    accuracy. So the last exit is not taken to be always right, nor an exit that disagrees with it
    to be always wrong.

    Args:
        rows: Rows as fetched, with labels of -1 where there was no feedback.
        calibration: The bundle's calibration set.
        seed: Seed of the draws.
    """
    temperature = fit_temperature(calibration.log_probs[-1], calibration.labels)
    drawn = draw_labels(rows.log_probs[-1], temperature, np.random.default_rng(seed))
    known = rows.labels != UNLABELLED
    log_probs = rows.log_probs.clip(SMALLEST_LOG, 0.0)
    predictions = Predictions(log_probs, np.where(known, rows.labels, drawn))
    return LabelledRows(predictions, int(known.sum()), temperature)


def _precision(name: str) -> Precision:
    for precision in get_args(Precision):
        if precision == name:
            known: Precision = precision
            return known
    raise ValueError(f"their precision {name!r} is none of {', '.join(get_args(Precision))}")


def _detail(content: bytes) -> str | None:
    """The error message in a problem response."""
    try:
        problem: Any = json.loads(content)
        detail: str | None = problem.get("detail")
    except (ValueError, AttributeError):
        return None
    return detail
