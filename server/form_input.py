"""The one image or text that a form holds, and the options beside it.

Browsers, curl and HTTP libraries name a file's field as they like, send the fields that a user left
empty, and attach a text as a file.
"""

from typing import NamedTuple

from starlette.datastructures import FormData, UploadFile

from models.file_kinds import begins_as_image
from server.errors import InvalidContent, MalformedRequest
from server.front import Modality

PAIR_FIELD = "text_pair"
CHARSET_FIELD = "_charset_"  # of browsers; checked by then
IMAGE_FIELDS = ("image", "file")
MOST_SHOWN = 5  # names of fields in a refusal


class FormInput(NamedTuple):
    """What a form asks.

    Attributes:
        modality: Of the payload.
        payload: The bytes of an image file, an image in base64, a text, or a pair of texts.
        options: The other fields.
    """

    modality: Modality
    payload: bytes | str | tuple[str, str]
    options: dict[str, str]


def read_input(form: FormData) -> FormInput:
    """Find the input of a form: a file under any name, or the field text.

    A text may be a file too, and an image a field in base64. Empty fields count as absent.

    Raises:
        InvalidContent: If there is no input, or more than one.
        MalformedRequest: If a text that came as a file is not UTF-8.
    """
    inputs: list[tuple[str, Modality, bytes | str | tuple[str, str]]] = []
    options: dict[str, str] = {}
    second: str | None = None
    has_empty_text = False
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            content = value.file.read()
            if content or value.filename:  # neither: the user chose no file
                inputs.append((name, *_read_file(name, value, content)))
        elif not value.strip():
            has_empty_text |= name == "text"
        elif name == "text":
            inputs.append((name, "text", value))
        elif name == PAIR_FIELD:
            second = value
        elif name in IMAGE_FIELDS:
            inputs.append((name, "image", value))
        elif name != CHARSET_FIELD:
            options[name] = value
    if len(inputs) == 1:
        _, modality, payload = inputs[0]
        if second is not None:
            payload = _paired(payload, second)
        return FormInput(modality, payload, options)
    if inputs:
        raise InvalidContent(
            f"the form holds {len(inputs)} inputs ({_shown([name for name, *_ in inputs])}); send "
            f"one in a form, or a list in JSON as images or texts"
        )
    if has_empty_text:
        raise InvalidContent("the text is empty; send at least one word")
    found = f"its fields are {_shown(list(options))}" if options else "it is empty"
    raise InvalidContent(
        f"the form holds no file and no text ({found}); send a file, or a field text"
    )


def _paired(payload: bytes | str | tuple[str, str], second: str) -> tuple[str, str]:
    if not isinstance(payload, str):
        raise InvalidContent("text_pair is the second of two texts; give the first as text")
    return payload, second


def _read_file(name: str, file: UploadFile, content: bytes) -> tuple[Modality, bytes | str]:
    media_type = (file.content_type or "").lower()
    names_text = name == "text" or media_type.startswith("text/")
    if not (names_text or (file.filename or "").lower().endswith(".txt")):
        return "image", content
    if begins_as_image(content):
        return "image", content
    try:
        return "text", content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MalformedRequest(
            f"the file {(file.filename or name)!r:.80} is a text but not UTF-8; save it as UTF-8"
        ) from error


def _shown(names: list[str]) -> str:
    shown = ", ".join([f"{name!r:.40}" for name in names[:MOST_SHOWN]])
    return shown if len(names) <= MOST_SHOWN else f"{shown} and {len(names) - MOST_SHOWN} more"
