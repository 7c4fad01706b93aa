"""Paths of the routes that take samples, and what metrics call a path that names a model."""

import re
from collections.abc import Mapping
from typing import NamedTuple

MODEL = r"(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?"
V1_PREDICT = re.compile(rf"/v1/models/{MODEL}:predict")
V2_MODEL = re.compile(rf"/v2/models/{MODEL}(?P<end>/ready|/infer|/stats)?")
V1_MODEL = re.compile(r"/v1/models/[^/]+")
NO_PARAMS: Mapping[str, str | None] = {}
PREDICT, PREDICT_STREAM, CLASSIFY = "/predict", "/predict/stream", "/classify"
KSERVE, INFER = "/v1/models/{model}:predict", "/v2/models/{model}/infer"
ALIASES = {"/health": "/readyz", "/healthz": "/readyz", "/ping": "/readyz"}


class SampleRoute(NamedTuple):
    """A route that takes samples.

    Attributes:
        label: What metrics call it.
        params: `model`, and `version` or None, where the path names them.
    """

    label: str
    params: Mapping[str, str | None] = NO_PARAMS


def sample_route(path: str) -> SampleRoute | None:
    """Return the route that takes samples under a path; None if there is none."""
    if path in (PREDICT, PREDICT_STREAM, CLASSIFY):
        return SampleRoute(path)
    if (match := V1_PREDICT.fullmatch(path)) is not None:
        return SampleRoute(KSERVE, match.groupdict())
    if path.endswith("/infer") and (match := V2_MODEL.fullmatch(path)) is not None:
        named = match.groupdict()
        return SampleRoute(INFER, {name: named[name] for name in ("model", "version")})
    return None


def takes_samples(path: str) -> bool:
    """Whether a POST to this path holds samples, and may be as large as they are."""
    return path == PREDICT or sample_route(path) is not None


def route_label(path: str) -> str:
    """Return the label of a path in metrics: the names of models and versions are left out."""
    if (route := sample_route(path)) is not None:
        return route.label
    if (match := V2_MODEL.fullmatch(path)) is not None and path != "/v2/models/stats":
        return f"/v2/models/{{model}}{match['end'] or ''}"
    if V1_MODEL.fullmatch(path):
        return "/v1/models/{model}"
    return ALIASES.get(path, path)
