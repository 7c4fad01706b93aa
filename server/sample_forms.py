"""Samples in the forms in which clients of other servers send them."""

import base64
import binascii
from collections.abc import Sequence
from typing import Any

from models.file_kinds import begins_as_image
from server.errors import InvalidContent
from server.front import Front, FrontModel, Modality
from server.schemas import Options

IMAGE_FIELDS, TEXT_FIELDS = ("image", "b64", "image_bytes", "data"), ("text", "inputs", "data")
Sample = str | tuple[str, str]
MAGIC_CHARACTERS = 64  # of base64, in which the first bytes of a file are


def samples_of(given: Any, field: str, most: int) -> tuple[list[Sample], bool]:
    """Return texts, pairs of texts, or images in base64, and whether they came as a list.

    Args:
        given: A text, a pair of texts, an object with either, or a list of them.
        field: The name of the field that held it.
        most: Most items of a list.

    Raises:
        InvalidContent: If it is none of them, or a list is empty or too long.
    """
    if not isinstance(given, list):
        return [_sample(given, field)], False
    if not given:
        raise InvalidContent(f"{field} is an empty list; send at least one item")
    if len(given) > most:
        raise InvalidContent(f"{field} holds {len(given)} items; {most} is the most, split it")
    return [_sample(each, f"{field}.{place}") for place, each in enumerate(given)], True


def select_reader(front: Front, options: Options, samples: Sequence[Sample]) -> FrontModel:
    """Return the model that is named, or else the only one that reads such samples.

    Args:
        front: The models.
        options: The request's, which may name a model and a version.
        samples: Texts or images in base64; the first one decides which of both they are.

    Raises:
        UnknownModel: As `Front.select_model`.
        InvalidContent: As there.
    """
    if options.model is not None:
        return front.select_model(options.model, version=options.version)
    kinds: set[Modality] = {model.reads for model in front.models.latest()}
    first = samples[0]
    is_image = isinstance(first, str) and looks_like_image(first)
    reads: Modality = "image" if is_image else "text"
    if len(kinds) == 1:
        (reads,) = kinds
    return front.select_model(None, reads, version=options.version)


def looks_like_image(text: str) -> bool:
    """Whether a text begins as an image in base64 does."""
    head = text[:MAGIC_CHARACTERS].lstrip()
    if head[:11].lower() == "data:image/":
        return True
    head = head[: len(head) // 4 * 4]
    try:
        return begins_as_image(base64.b64decode(head, validate=True))
    except (binascii.Error, ValueError):
        return False


def _sample(given: Any, field: str) -> Sample:
    if isinstance(given, str):
        return given
    if isinstance(given, list) and len(given) == 1 and isinstance(given[0], str):
        return given[0]  # of servers that read pairs, one that is alone
    if isinstance(given, list) and len(given) == 2 and all(isinstance(e, str) for e in given):
        return given[0], given[1]
    if isinstance(given, dict):
        return _of_object(given, field)
    raise InvalidContent(f"{field} should be a text or an image file in base64; send one")


def _of_object(given: dict[str, Any], field: str) -> Sample:
    if given.keys() == {"text", "text_pair"}:
        first, second = given["text"], given["text_pair"]
        if not isinstance(first, str) or not isinstance(second, str):
            raise InvalidContent(f"{field}.text and {field}.text_pair should be texts")
        return first, second
    names = [name for name in given if name in (*IMAGE_FIELDS, *TEXT_FIELDS)]
    if len(given) != 1 or len(names) != 1:
        raise InvalidContent(
            f"{field} is an object; give it exactly one field, text or b64 (an image in base64)"
        )
    value = given[names[0]]
    if isinstance(value, dict) and list(value) == ["b64"]:
        value = value["b64"]
    if not isinstance(value, str):
        raise InvalidContent(f"{field}.{names[0]} should be a text")
    return value
