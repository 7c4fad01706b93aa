"""The preprocessing of a cascade whose networks read a request differently.

All inputs are made when the request arrives. The arrays of the later networks travel with the row,
behind those of the first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from models.backend import State
from models.images import SLOW_MS, DecodedImage, ImageDecoder, Postponed
from models.preprocess import ImagePreprocessor, ModelInput, Text, TextPreprocessor

Withheld = TypeVar("Withheld", None, Postponed)


@dataclass(frozen=True, kw_only=True)
class SeveralImages(ImagePreprocessor):
    """Decode an image for every network; those that want the same pixels share the decoding.

    The state has one array for each network's input: that of the first, which the other fields
    describe, then those of the others.

    Attributes:
        others: The preprocessing of the other inputs.
    """

    others: tuple[ImagePreprocessor, ...]

    def __call__(self, data: bytes) -> ModelInput:
        """Decode an image to all inputs of one row.

        Raises:
            InvalidInput: As for one input.
        """
        return self.decode_by(lambda decoder, data: decoder.decode(data), data)

    def decode_if_small(self, data: bytes) -> ModelInput | None:
        """Decode a small image; return None if decoding may take more than a few 0.1 ms.

        Raises:
            InvalidInput: As for one input.
        """
        return self._decode_each(lambda decoder: decoder.decode_if_small(data))

    def decode_if_fast(self, data: bytes, most_ms: float = SLOW_MS) -> ModelInput | Postponed:
        """Decode an image, unless its header says that this may take longer than `most_ms`.

        Raises:
            InvalidInput: As for one input.
        """
        return self._decode_each(lambda decoder: decoder.decode_if_fast(data, most_ms))

    def decode_by(
        self, decode: Callable[[ImageDecoder, bytes], DecodedImage], data: bytes
    ) -> ModelInput:
        """Decode an image elsewhere, once for each size.

        Raises:
            InvalidInput: As for one input, and as `decode` does.
        """
        by_size = {size: decode(decoder, data) for size, decoder in self._decoders.items()}
        return self._joined(by_size)

    @property
    def of_pixels(self) -> "SeveralImages":
        """The same, but without normalising: its states are pixels."""
        return replace(self, dtype="uint8", others=tuple([each.of_pixels for each in self.others]))

    @property
    def example(self) -> State:
        """A state of one row for warm-up and measurements."""
        others = [array for each in self.others for array in each.example]
        return (*super().example, *others)

    def batch(self, images: NDArray[np.uint8]) -> State:
        """Make network input of images (N, H, W, 3) that have the size of every input.

        Raises:
            ValueError: If the inputs differ in size: nothing but the image itself fits all.
        """
        if len(self._decoders) > 1:
            sizes = ", ".join(f"{each.width}x{each.height}" for each in (self, *self.others))
            raise ValueError(
                f"the networks of this cascade read images of {sizes}; images of one size fit only "
                f"one of them, so record each network by itself"
            )
        return (*super().batch(images), *[each.batch(images)[0] for each in self.others])

    def from_pixels(self, pixels: State) -> State:
        """Make network input of the states of `of_pixels`."""
        first, *rest = pixels
        others = [each.batch(array)[0] for each, array in zip(self.others, rest, strict=True)]
        return (*super().batch(first), *others)

    @property
    def _decoders(self) -> dict[tuple[int, int, str], ImageDecoder]:
        """The decoder of each size and fit."""
        return {_size(each): each._decoder for each in (self, *self.others)}

    def _decode_each(
        self, decode: Callable[[ImageDecoder], DecodedImage | Withheld]
    ) -> ModelInput | Withheld:
        """Decode for each size in this thread; return what one of them withholds."""
        by_size: dict[tuple[int, int, str], DecodedImage] = {}
        for size, decoder in self._decoders.items():
            decoded = decode(decoder)
            if decoded is None or isinstance(decoded, Postponed):
                return decoded
            by_size[size] = decoded
        return self._joined(by_size)

    def _joined(self, by_size: dict[tuple[int, int, str], DecodedImage]) -> ModelInput:
        first = by_size[_size(self)]
        rest = [by_size[_size(each)].pixels[None] for each in self.others]
        return ModelInput(self.from_pixels((first.pixels[None], *rest)), size=first.size)


@dataclass(frozen=True, kw_only=True)
class SeveralTexts(TextPreprocessor):
    """Tokenise a text for every network.

    The state has token ids and mask for each network's input: those of the first, which the other
    fields describe, then those of the others.

    Attributes:
        others: The preprocessing of the other inputs.
    """

    others: tuple[TextPreprocessor, ...]

    def __call__(self, text: Text) -> ModelInput:
        """Tokenise a text; it counts as truncated if any network reads only a part of it.

        Raises:
            InvalidInput: As for one input, of any network.
        """
        first = super().__call__(text)
        made = [first, *[each(text) for each in self.others]]
        state = tuple([array for each in made for array in each.state])
        truncated = any([each.truncated for each in made])
        return first._replace(state=state, truncated=truncated)

    @property
    def example(self) -> State:
        """A state of one row for warm-up and measurements."""
        others = [array for each in self.others for array in each.example]
        return (*super().example, *others)

    def batch(self, texts: Sequence[Text]) -> State:
        """Tokenise N texts for every network, padded to the longest of each."""
        others = [array for each in self.others for array in each.batch(texts)]
        return (*super().batch(texts), *others)


def _size(each: ImagePreprocessor) -> tuple[int, int, str]:
    return each.height, each.width, each.fit
