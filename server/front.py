"""The front of the server: from a request's bytes to its answer."""

import random
import time
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
from prometheus_client import Gauge
from starlette.requests import Request

from models.bundle import Bundle
from models.preprocess import ImagePreprocessor
from server.admission import Admission
from server.choice import get_model
from server.decode_pool import DecodePool
from server.decoders import Decoders, make_decoders
from server.dispatch import Dispatcher
from server.errors import InvalidContent, UnknownModel
from server.quality.auditor import AuditSampler
from server.settings import Settings
from server.shared_turn import SharedTurn

Modality = Literal["image", "text"]


class FrontModel:
    """One model's description, and its dispatcher.

    Args:
        bundle: A verified bundle.
        settings: The server's.
        decoders: Turn bytes into arrays.
        rng: Draws the requests to audit.
        clock: Seconds, monotonic.
        sends_pixels: Whether images leave as bytes, to be normalised where they arrive.
    """

    def __init__(
        self,
        bundle: Bundle,
        settings: Settings,
        decoders: Decoders,
        rng: random.Random,
        clock: Callable[[], float],
        *,
        sends_pixels: bool,
    ) -> None:
        manifest = bundle.manifest
        self.name, self.version, self.classes = manifest.name, manifest.version, manifest.classes
        self.task, self.num_exits = manifest.task, manifest.num_exits
        self.thresholds = None if manifest.thresholds is None else np.array(manifest.thresholds)
        self.reads: Modality = "text" if manifest.task == "text" else "image"
        self.input = manifest.input
        sampler = AuditSampler(settings.audit_share, rng)
        preprocess = bundle.preprocessor(**settings.image_bounds)
        if sends_pixels and isinstance(preprocess, ImagePreprocessor):
            preprocess = preprocess.of_pixels
        self.preprocess = preprocess
        self.dispatcher = Dispatcher(preprocess, decoders, sampler, clock)
        self.dispatcher.name = self.name


class Front:
    """What the prediction routes share; at `app.state.front` while the server runs.

    Args:
        bundles: Those to serve, by name.
        settings: The server's.
        inflight: Gauge of the samples in flight.
        seed: Of the audit's draws; another one for each front.
        clock: Seconds, monotonic.
        sends_pixels: Whether images leave as bytes, to be normalised where they arrive.
        beyond: As in `server.decoders.PixelRoom`.
    """

    def __init__(
        self,
        bundles: Mapping[str, Bundle],
        settings: Settings,
        inflight: Gauge,
        seed: int = 0,
        clock: Callable[[], float] = time.perf_counter,
        *,
        sends_pixels: bool = False,
        beyond: SharedTurn | None = None,
    ) -> None:
        self.settings = settings
        self.decoders = make_decoders(
            settings.decode_workers,
            settings.decode_timeout_s,
            settings.max_decoding_pixels,
            beyond,
        )
        self.parse_pool = DecodePool(1)  # of large bodies: hostile ones hold up no image
        self.admission = Admission(settings.max_queue, inflight, clock, settings.max_queue_s)
        rng = random.Random(seed)
        self.models = {
            name: FrontModel(
                bundle,
                settings,
                self.decoders,
                rng,
                clock,
                sends_pixels=sends_pixels,
            )
            for name, bundle in bundles.items()
        }

    def stop(self) -> None:
        """End the threads, and the process that decodes slow images; blocks."""
        self.decoders.shutdown()
        self.parse_pool.shutdown()

    def select_model(self, name: str | None, reads: Modality) -> FrontModel:
        """Return the model a request asks for.

        Args:
            name: The name in the request, if any.
            reads: The modality of the request's input.

        Raises:
            UnknownModel: If no model of that name is loaded, or none that reads this modality.
            InvalidContent: If the named model reads another modality, or several models could
                answer and the request names none.
        """
        if name is not None:
            model = get_model(self.models, name)
            if model.reads != reads:
                raise InvalidContent(f"{name} reads {model.reads}s; send it one, not {reads}s")
            return model
        able = [model for model in self.models.values() if model.reads == reads]
        if len(able) > 1:
            names = ", ".join(sorted(model.name for model in able))
            raise InvalidContent(f"several models read {reads}s; name one of {names} as model")
        if not able:
            loaded = ", ".join(f"{m.name} ({m.reads}s)" for m in self.models.values())
            raise UnknownModel(f"no model that reads {reads}s is loaded; loaded are {loaded}")
        return able[0]


def front_of(request: Request) -> Front:
    """Return the front of the running server."""
    front: Front = request.app.state.front
    return front
