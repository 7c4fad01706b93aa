"""From bytes or text to a network's input, and how long that took."""

from collections.abc import Callable
from typing import Any

from models.backend import State
from models.preprocess import ImagePreprocessor, InvalidInput, ModelInput, TextPreprocessor
from server.errors import InvalidContent
from server.sample import SMALL_INPUT, Decoded, Load


class Decoder:
    """Decodes what one model reads; any thread may call.

    Args:
        preprocess: The model's own.
        clock: Seconds, monotonic.
    """

    def __init__(
        self, preprocess: ImagePreprocessor | TextPreprocessor, clock: Callable[[], float]
    ) -> None:
        # Which of the two it takes, the model's `reads` says, and routes hand it nothing else.
        self._preprocess: Any = preprocess
        self._clock = clock

    @property
    def example(self) -> State:
        """An input of one row."""
        example: State = self._preprocess.example
        return example

    def quickly(self, load: Load) -> Decoded | None:
        """Decode a small input, for handing it to a thread and back costs more; else None.

        Raises:
            InvalidContent: If it cannot be decoded.
        """
        if not load.small or load.size > SMALL_INPUT:
            return None
        return self._timed(load, self._preprocess.quickly)

    def __call__(self, load: Load) -> Decoded:
        """Decode an input.

        Raises:
            InvalidContent: If it cannot be decoded.
        """
        decoded = self._timed(load, self._preprocess)
        assert decoded is not None, "only decoding quickly gives up"
        return decoded

    def _timed(self, load: Load, preprocess: Callable[[Any], ModelInput | None]) -> Decoded | None:
        started = self._clock()
        try:
            prepared = preprocess(load.read())
        except InvalidInput as error:
            raise InvalidContent(str(error)) from error
        if prepared is None:
            return None
        return Decoded(prepared, (self._clock() - started) * 1e3)
