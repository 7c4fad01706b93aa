"""The classifier that every peer serves: bytes of an image or a text in, its class index out.

It imports no package of this repository, so that it runs in the peers' environments.
"""

import io
import os

import numpy as np
import onnxruntime as ort
from PIL import Image, ImageOps

SIDE = 32
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)
MAX_TOKENS = 128


def open_session(graph: str) -> ort.InferenceSession:
    """Open a session of one thread: each worker has one."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


class Unreadable(ValueError):
    """The body is no image that Pillow reads, and the client's fault."""


class ImageClassifier:
    """Classifies images of CIFAR-10."""

    def __init__(self, graph: str) -> None:
        self._session = open_session(graph)
        self._input = self._session.get_inputs()[0].name

    def __call__(self, body: bytes) -> int:
        """Classify an image of any format.

        Raises:
            Unreadable: If the body is none.
        """
        try:
            image = Image.open(io.BytesIO(body)).convert("RGB")
        except Exception as error:  # Pillow's decoders raise whatever they meet
            raise Unreadable(f"the image cannot be read: {error}") from error
        if image.size != (SIDE, SIDE):
            image = ImageOps.fit(image, (SIDE, SIDE), Image.Resampling.BICUBIC)
        scaled = (np.asarray(image).astype(np.float32) / np.float32(255) - MEAN) / STD
        pixels = np.ascontiguousarray(scaled.transpose(2, 0, 1)[None])  # (1, 3, H, W)
        (logits,) = self._session.run(None, {self._input: pixels})
        return int(logits[0].argmax())


class TextClassifier:
    """Classifies texts of AG News."""

    def __init__(self, graph: str, tokenizer: str) -> None:
        from tokenizers import Tokenizer

        self._session = open_session(graph)
        self._inputs = [given.name for given in self._session.get_inputs()]
        self._tokenizer = Tokenizer.from_file(tokenizer)
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._tokenizer.no_padding()

    def __call__(self, body: bytes) -> int:
        """Classify a text in UTF-8."""
        ids = np.array([self._tokenizer.encode(body.decode()).ids], np.int64)  # (1, L)
        (logits,) = self._session.run(
            None, dict(zip(self._inputs, (ids, np.ones_like(ids)), strict=True))
        )
        return int(logits[0].argmax())


def classifier() -> ImageClassifier | TextClassifier:
    """Make the classifier that the environment variables name."""
    if tokenizer := os.environ.get("BENCH_TOKENIZER"):
        return TextClassifier(os.environ["BENCH_GRAPH"], tokenizer)
    return ImageClassifier(os.environ["BENCH_GRAPH"])
