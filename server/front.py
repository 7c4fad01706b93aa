"""The front of the server: from a request's bytes to its answer."""

import random
import time
from collections.abc import Callable
from typing import Literal

import numpy as np
from prometheus_client import Gauge
from starlette.requests import Request

from models.bundle import Bundle
from models.preprocess import ImagePreprocessor
from server.admission import Admission
from server.choice import NONE_LOADED, ModelTable
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
        settings: The server's.
        inflight: Gauge of the samples in flight.
        seed: Of the audit's draws; another one for each front.
        clock: Seconds, monotonic.
        sends_pixels: Whether images leave as bytes, to be normalised where they arrive.
        beyond: As in `server.decoders.PixelRoom`.

    Attributes:
        models: Those that are served.
        sole: The model that answers requests without a name, by what it reads.
    """

    def __init__(
        self,
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
        self.models = ModelTable[FrontModel]()
        self.sole: dict[Modality, FrontModel] = {}
        self._rng, self._clock, self._sends_pixels = random.Random(seed), clock, sends_pixels

    def open(self, bundle: Bundle) -> FrontModel:
        """Prepare to serve a bundle; blocks, and any thread may call.

        Raises:
            ValueError: If the tokenizer cannot be read.
        """
        return FrontModel(
            bundle,
            self.settings,
            self.decoders,
            self._rng,
            self._clock,
            sends_pixels=self._sends_pixels,
        )

    def add(self, model: FrontModel) -> None:
        """Let requests reach a model from now on; its dispatcher has been started."""
        self.models.add(model)
        self._find_sole()

    def remove(self, model: FrontModel) -> None:
        """Let no more requests reach a model; those that have been dispatched go on."""
        self.models.remove(model)
        self._find_sole()

    def stop(self) -> None:
        """End the threads, and the process that decodes slow images; blocks."""
        self.decoders.shutdown()
        self.parse_pool.shutdown()

    def select_model(
        self, name: str | None, reads: Modality | None = None, *, version: str | None = None
    ) -> FrontModel:
        """Return the model a request asks for.

        Dispatch requests to it without awaiting anything before: it may be unloaded meanwhile.

        Args:
            name: The name in the request, if any: `NAME` or `NAME@VERSION`.
            reads: The modality of the request's input; None: whatever the model reads.
            version: The version in the request; None: the name's, or else the latest.

        Raises:
            UnknownModel: If no such model is loaded, or none that reads this modality.
            InvalidContent: If the named model reads another modality, or several models could
                answer and the request names none.
        """
        if name is not None:
            model = self.models.find(name, version)
            if reads not in (None, model.reads):
                raise InvalidContent(f"{name} reads {model.reads}s; send it one, not {reads}s")
            return model
        able = [model for model in self.models.latest() if reads in (None, model.reads)]
        inputs = "inputs" if reads is None else f"{reads}s"
        if len(able) > 1:
            names = ", ".join(sorted(model.name for model in able))
            raise InvalidContent(f"several models read {inputs}; name one of {names} as model")
        if not len(self.models):
            raise UnknownModel(NONE_LOADED)
        if not able:
            loaded = ", ".join(f"{m.name} ({m.reads}s)" for m in self.models)
            raise UnknownModel(f"no model that reads {inputs} is loaded; loaded are {loaded}")
        return able[0] if version is None else self.models.find(able[0].name, version)

    def _find_sole(self) -> None:
        able: dict[Modality, list[FrontModel]] = {"image": [], "text": []}
        for model in self.models.latest():
            able[model.reads].append(model)
        self.sole = {reads: models[0] for reads, models in able.items() if len(models) == 1}


def front_of(request: Request) -> Front:
    """Return the front of the running server."""
    front: Front = request.app.state.front
    return front
