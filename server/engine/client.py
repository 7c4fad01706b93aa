"""Where requests go: an engine of this process, or engines of others."""

from collections.abc import Sequence
from typing import Protocol

from server.engine.request import InferenceRequest


class EngineClient(Protocol):
    """Takes the requests of one model; each comes back once, with its `result`.

    All methods belong to the event loop's thread, unless they say otherwise.
    """

    def submit(self, requests: Sequence[InferenceRequest]) -> None:
        """Let requests wait for stage 0; any thread may call."""

    def cancel(self, requests: Sequence[InferenceRequest]) -> None:
        """Drop requests that nobody waits for any more; they do not come back."""

    def note_cancelled(self, count: int) -> None:
        """Count requests whose clients left before they were submitted; any thread may call."""

    def note_delivery(self, now_s: float, took_s: float) -> None:
        """Note how long finished requests took to where they are answered."""
