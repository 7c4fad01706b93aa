"""What a running server saw, as a calibration set: fetched over HTTP and labelled."""

import io
import json
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

import numpy as np
from numpy.typing import NDArray

from models.bundle import Manifest
from profiling.calibration import Predictions
from scheduler.confidence import SMALLEST_LOG
from scheduler.monitoring.temperature import draw_labels, fit_temperature

MIN_ROWS = 500
TIMEOUT_S = 60.0
UNLABELLED = -1


class LiveRows(NamedTuple):
    """Audited samples.

    Attributes:
        log_probs: Of every exit, (K, N, C).
        labels: True ones, -1 where none came, (N,).
    """

    log_probs: NDArray[np.floating]
    labels: NDArray[np.int64]


class LiveServer:
    """A server that runs, and one of its models.

    Args:
        url: Its root, such as http://localhost:8000.
        model: Name of the model there.

    Raises:
        ValueError: If the URL is not one of a server.
    """

    def __init__(self, url: str, model: str) -> None:
        if urlsplit(url).scheme not in ("http", "https"):
            raise ValueError(
                f"--from-live {url!r} is no URL of a server; give one such as http://localhost:8000"
            )
        self.url = url.rstrip("/")
        self.model = model

    def rows(self, manifest: Manifest) -> LiveRows:
        """The model's audited samples.

        Args:
            manifest: Of the bundle that they are for.

        Raises:
            ValueError: If the server does not answer, the rows are too few, or not of such a model.
        """
        content = self._ask("GET", "/audit/rows")
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                rows = LiveRows(arrays["log_probs"], arrays["labels"].astype(np.int64))
        except Exception as error:  # numpy and zipfile raise a dozen types on a damaged archive
            raise ValueError(
                f"{self.url}/audit/rows answers no rows: {error}; is it a server of `eenet serve`?"
            ) from error
        self._check(rows, manifest)
        return rows

    def reload(self) -> str:
        """Let it read its scheduler again; the SHA-256 of the scheduler.npz that it runs then.

        Raises:
            ValueError: If it does not answer, or refuses.
        """
        content = self._ask("POST", "/scheduler/reload")
        try:
            (told,) = json.loads(content)["models"]
            sha256: str = told["sha256"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.url}/scheduler/reload does not tell what it runs; is it a server of `eenet "
                f"serve`?"
            ) from error
        return sha256

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

    def _ask(self, method: str, path: str) -> bytes:
        url = f"{self.url}{path}?{urlencode({'model': self.model})}"
        try:
            request = urllib.request.Request(url, method=method)
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                content: bytes = answer.read()
        except urllib.error.HTTPError as error:
            with error:
                reason = _detail(error.read()) or error.reason
            raise ValueError(f"{method} {url} was answered {error.code}: {reason}") from error
        except (OSError, HTTPException) as error:  # the latter also of a port that is none
            raise ValueError(f"{method} {url} failed: {error}; is the server up?") from error
        return content


class LabelledRows(NamedTuple):
    """Live rows as a calibration set, and where their labels are from."""

    predictions: Predictions
    with_feedback: int
    temperature: float


def labelled(rows: LiveRows, calibration: Predictions, seed: int) -> LabelledRows:
    """Give every row a label.

    It is the true one where it came. Others are drawn from what the last exit says, at the
    temperature at which it is as sure as it is right on the calibration set: so it is not taken for
    infallible, and an exit that disagrees is not always wrong.

    Args:
        rows: As fetched.
        calibration: Of the bundle, as it was.
        seed: Of the draws.
    """
    temperature = fit_temperature(calibration.log_probs[-1], calibration.labels)
    drawn = draw_labels(rows.log_probs[-1], temperature, np.random.default_rng(seed))
    known = rows.labels != UNLABELLED
    log_probs = rows.log_probs.clip(SMALLEST_LOG, 0.0)
    predictions = Predictions(log_probs, np.where(known, rows.labels, drawn))
    return LabelledRows(predictions, int(known.sum()), temperature)


def _detail(content: bytes) -> str | None:
    """The sentence of a problem answer."""
    try:
        problem: Any = json.loads(content)
        detail: str | None = problem.get("detail")
    except (ValueError, AttributeError):
        return None
    return detail
