"""Turn the image or text of a request into the input of stage 0."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import Unigram

from models.backend import State
from models.images import (
    MAX_PIXELS_PER_BYTE,
    MAX_SCANS,
    SLOW_MS,
    DecodedImage,
    ImageDecoder,
    Postponed,
)
from models.images import InvalidInput as InvalidInput
from models.texts import is_blank

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SMALL_CHARACTERS = 512  # about 0.2 ms of tokenising
# Texts are cut to this many characters per token of the limit before they are tokenised.
CHARACTERS_PER_TOKEN = 64
Text = str | tuple[str, str]
"""A text, or a pair of texts that a network reads together."""


class ModelInput(NamedTuple):
    """Input of stage 0 for one request.

    Attributes:
        state: A state of one row.
        truncated: Whether the text was longer than the model's limit.
        size: Width and height of the upright image; None for a text.
        unknown_share: Share of a text's tokens that stand for what the model does not know.
        tokens: Tokens of the text; 0 for an image.
    """

    state: State
    truncated: bool = False
    size: tuple[int, int] | None = None
    unknown_share: float = 0.0
    tokens: int = 0


@dataclass(frozen=True)
class ImagePreprocessor:
    """Decode an image of any size and mode to the input of the first stage.

    Attributes:
        height: Height of the network's input.
        width: Width of the network's input.
        mean: Mean of each channel, on a scale of 0 to 1.
        std: Standard deviation of each channel.
        fit: `cover`: scale to cover the input and crop to the centre; `stretch`: scale each side
            separately, so that no part of the image is lost.
        dtype: Type of the first stage's input. `float32`: normalised planes (N, 3, H, W). `uint8`:
            pixels (N, H, W, 3), which the stage normalises itself.
        max_pixels: Largest image that is decoded, checked in its header.
        max_pixels_per_byte: As in `ImageDecoder`.
        max_scans: As in `ImageDecoder`.
        crop: As in `ImageDecoder`.
    """

    height: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fit: Literal["cover", "stretch"] = "cover"
    dtype: Literal["float32", "uint8"] = "float32"
    max_pixels: int = 50_000_000
    max_pixels_per_byte: int = MAX_PIXELS_PER_BYTE
    max_scans: int = MAX_SCANS
    crop: float = 1.0

    _decoder: ImageDecoder = field(init=False, repr=False, compare=False)
    _levels: NDArray[np.float32] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        bounds = self.max_pixels, self.max_pixels_per_byte, self.max_scans
        decoder = ImageDecoder(self.height, self.width, self.fit, *bounds, self.crop)
        object.__setattr__(self, "_decoder", decoder)
        # Normalised values of all 256 levels of each channel, so that normalising is a look-up.
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        shades = np.arange(256, dtype=np.float32)[:, None] / np.float32(255)
        object.__setattr__(self, "_levels", np.ascontiguousarray(((shades - mean) / std).T))

    def __call__(self, data: bytes) -> ModelInput:
        """Decode an image to network input of one row, as `batch` describes it.

        Raises:
            InvalidInput: If the bytes are not an image, the image is damaged, or it has too many
                pixels or scans.
        """
        return self._prepare(self._decoder.decode(data))

    def decode_if_small(self, data: bytes) -> ModelInput | None:
        """Decode a small image; return None if decoding may take more than a few 0.1 ms.

        Raises:
            InvalidInput: As for a call.
        """
        decoded = self._decoder.decode_if_small(data)
        return None if decoded is None else self._prepare(decoded)

    def decode_if_fast(self, data: bytes, most_ms: float = SLOW_MS) -> ModelInput | Postponed:
        """Decode an image, unless its header says that this may take longer than `most_ms`.

        Raises:
            InvalidInput: As for a call.
        """
        decoded = self._decoder.decode_if_fast(data, most_ms)
        return decoded if isinstance(decoded, Postponed) else self._prepare(decoded)

    def decode_by(
        self, decode: Callable[[ImageDecoder, bytes], DecodedImage], data: bytes
    ) -> ModelInput:
        """Decode an image elsewhere, for instance in another process.

        Raises:
            InvalidInput: As for a call, and as `decode` does.
        """
        return self._prepare(decode(self._decoder, data))

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the network's input."""
        return self.width, self.height

    @property
    def of_pixels(self) -> "ImagePreprocessor":
        """The same, but without normalising: its states are pixels (1, H, W, 3)."""
        return replace(self, dtype="uint8")

    @property
    def example(self) -> State:
        """A state of one row for warm-up and measurements."""
        shape = (1, 3, self.height, self.width)
        if self.dtype == "uint8":
            shape = (1, self.height, self.width, 3)
        return (np.zeros(shape, self.dtype),)

    def decode(self, data: bytes) -> NDArray[np.uint8]:
        """Decode an image to upright RGB of the input's size, (H, W, 3).

        Transparent pixels become white.

        Raises:
            InvalidInput: As for a call.
        """
        return self._decoder.decode(data).pixels

    def batch(self, images: NDArray[np.uint8]) -> State:
        """Make network input of images (N, H, W, 3).

        Returns:
            One array: (N, 3, H, W) float32, or the same images if the first stage takes pixels.
        """
        return (images if self.dtype == "uint8" else self.normalise(images),)

    def from_pixels(self, pixels: State) -> State:
        """Make network input of the states of `of_pixels`."""
        return self.batch(*pixels)

    def normalise(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Normalise images (N, H, W, 3) to network input (N, 3, H, W)."""
        planes = np.empty((len(images), 3, *images.shape[1:3]), np.float32)
        for channel, levels in enumerate(self._levels):
            # No index is out of range, and clipping skips the copy that checking would make.
            levels.take(images[..., channel], out=planes[:, channel], mode="clip")
        return planes

    def _prepare(self, decoded: DecodedImage) -> ModelInput:
        return ModelInput(self.batch(decoded.pixels[None]), size=decoded.size)


@dataclass(frozen=True)
class TextPreprocessor:
    """Tokenise a text and truncate it at the model's limit.

    Attributes:
        tokenizer: Path of a `tokenizer.json`.
        max_tokens: Most tokens of a text, including special ones.
        pad_id: Token id of padding; the mask marks it.
        length_step: Texts are padded to a multiple of this length, so that more of them share a
            length and can be batched.
        typical_tokens: Length of the example text, with which costs are measured.
        pair: Whether an input is a pair of texts, which the tokenizer joins.
    """

    tokenizer: Path
    max_tokens: int
    pad_id: int
    length_step: int
    typical_tokens: int
    pair: bool = False
    _tokenizer: Tokenizer = field(init=False, repr=False, compare=False)
    _added: int = field(init=False, repr=False, compare=False)  # special tokens around each text
    _unknown_id: int | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            tokenizer = Tokenizer.from_file(str(self.tokenizer))
        except Exception as error:  # the library raises bare exceptions
            raise ValueError(f"{self.tokenizer} is not a tokenizer: {error}") from error
        tokenizer.enable_truncation(self.max_tokens)
        tokenizer.no_padding()
        object.__setattr__(self, "_tokenizer", tokenizer)
        object.__setattr__(self, "_added", tokenizer.num_special_tokens_to_add(self.pair))
        object.__setattr__(self, "_unknown_id", _unknown_id(tokenizer))

    def __call__(self, text: Text) -> ModelInput:
        """Tokenise a text, or a pair of texts, to token ids and mask, (1, L) int64 each.

        Raises:
            InvalidInput: If a text holds nothing to read or is not valid Unicode, or a pair came
                where the network reads one text, or the other way round.
        """
        limit = CHARACTERS_PER_TOKEN * self.max_tokens
        parts = (text,) if isinstance(text, str) else text
        if (len(parts) > 1) != self.pair:
            raise InvalidInput(
                "the model reads pairs of texts; send the second as text_pair"
                if self.pair
                else "the model reads one text; leave text_pair out, or join the two into one"
            )
        for part in parts:
            if is_blank(part[:limit]):
                raise InvalidInput("the text is empty; send at least one word")
        try:
            first, *second = [part[:limit] for part in parts]
            encoding = self._tokenizer.encode(first, second[0] if second else None)
        except (TypeError, UnicodeError) as error:
            raise InvalidInput(
                "the text holds half of a surrogate pair; send valid Unicode"
            ) from error
        ids = encoding.ids
        read = len(ids) - self._added
        if read <= 0:
            raise InvalidInput("the text holds no tokens of the model; send at least one word")
        unknown = 0 if self._unknown_id is None else ids.count(self._unknown_id)
        return ModelInput(
            self._pad([ids], self._padded(len(ids))),
            bool(encoding.overflowing) or max(map(len, parts)) > limit,
            unknown_share=unknown / read,
            tokens=len(ids),
        )

    def decode_if_small(self, text: Text) -> ModelInput | None:
        """Tokenise a short text; return None if that may take more than a few 0.1 ms.

        Raises:
            InvalidInput: As for a call.
        """
        length = len(text) if isinstance(text, str) else sum(map(len, text))
        return self(text) if length <= SMALL_CHARACTERS else None

    def decode_if_fast(self, text: Text) -> ModelInput | None:
        """Tokenise a text; all are fast, since they are cut before."""
        return self(text)

    @property
    def example(self) -> State:
        """A state of one row for warm-up and measurements."""
        ids = np.full((1, self.typical_tokens), self.pad_id, np.int64)
        return ids, np.ones_like(ids)

    def batch(self, texts: Sequence[Text]) -> State:
        """Tokenise N texts to token ids and mask, (N, L) int64 each, padded alike."""
        limit = CHARACTERS_PER_TOKEN * self.max_tokens
        cut = [
            text[:limit] if isinstance(text, str) else (text[0][:limit], text[1][:limit])
            for text in texts
        ]
        encodings = self._tokenizer.encode_batch(cut)
        rows = [encoding.ids for encoding in encodings]
        return self._pad(rows, self._padded(max(map(len, rows))))

    def _padded(self, length: int) -> int:
        """Return the length to which texts of at most `length` tokens are padded."""
        step = self.length_step
        return min(-(-length // step) * step, self.max_tokens)

    def _pad(self, rows: Sequence[Sequence[int]], length: int) -> State:
        ids = np.full((len(rows), length), self.pad_id, np.int64)
        mask = np.zeros((len(rows), length), np.int64)
        for row, tokens in enumerate(rows):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        return ids, mask


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    """Return the token for what is unknown; None if all bytes have tokens."""
    name = getattr(tokenizer.model, "unk_token", None)
    if isinstance(tokenizer.model, Unigram):  # it does not say, but all have it by this name
        name = "<unk>"
    return None if name is None else tokenizer.token_to_id(name)
