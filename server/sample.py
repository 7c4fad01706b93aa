"""A sample that somebody waits for: its input, and what it is answered with."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from models.preprocess import ModelInput
from server.engine.request import InferenceRequest, Prediction

Modality = Literal["image", "text"]
Input = bytes | str

SMALL_INPUT = 16 * 1024  # bytes or characters: larger ones are never decoded on the loop


class Load(NamedTuple):
    """How to get at an input.

    Attributes:
        size: In bytes or characters, about.
        read: Gives it.
        small: Whether it may be decoded on the event loop if its size allows.
    """

    size: int
    read: Callable[[], Input]
    small: bool = True


class Served(NamedTuple):
    """One sample's answer, where its time went, and what it was made of."""

    answer: Prediction
    decode_ms: float
    total_ms: float
    truncated: bool
    mask: bytes | None  # a PNG


class Decoded(NamedTuple):
    """What was made of a request's input, and how long that took."""

    prepared: ModelInput
    decode_ms: float


@dataclass(slots=True, eq=False)
class Request:
    """A sample on its way; the tag of the engine's rows.

    Attributes:
        future: The answer and the total latency in ms; set on the loop.
        received_s: When the request's headers came.
        controlled: Under the global budget.
        decoded: Once it is.
        row: In the engine, once it is decoded.
        left: Nobody waits for it any more.
    """

    future: asyncio.Future[tuple[Prediction, float]]
    received_s: float
    controlled: bool
    decoded: Decoded | None = None
    row: InferenceRequest | None = None
    left: bool = False
