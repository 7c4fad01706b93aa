"""Forms of browsers, curl and HTTP libraries: which part is the input, and which are options."""

import io
from typing import Any

import pytest
from starlette.datastructures import FormData, Headers, UploadFile

from server.errors import InvalidContent, MalformedRequest
from server.form_input import FormInput, read_input

JPEG = b"\xff\xd8\xff\xe0 the rest"


def file(content: bytes, name: str = "a.jpg", media_type: str | None = "image/jpeg") -> UploadFile:
    headers = {} if media_type is None else {"content-type": media_type}
    return UploadFile(io.BytesIO(content), filename=name, headers=Headers(headers))


def read(*parts: tuple[str, Any]) -> FormInput:
    return read_input(FormData(parts))


@pytest.mark.parametrize("name", ["file", "image", "photo", "upload[]", "text", "\u56fe"])
@pytest.mark.parametrize("media_type", ["image/jpeg", "application/octet-stream", None])
def test_a_lone_file_is_the_image_whatever_its_field(name: str, media_type: str | None) -> None:
    assert read((name, file(JPEG, media_type=media_type))) == ("image", JPEG, {})


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("text", file(b"Oil prices", "t.txt", "text/plain")),
        ("text", file(b"Oil prices", "blob", "application/octet-stream")),
        ("text", file(b"Oil prices", "t", None)),
        ("file", file(b"Oil prices", "t.txt", "text/plain; charset=utf-8")),
        ("upload", file(b"Oil prices", "T.TXT", "application/octet-stream")),
        ("file", file(b"\xef\xbb\xbfOil prices", "t.txt", "text/plain")),
        ("text", "Oil prices"),
    ],
)
def test_a_file_of_text_is_the_text(name: str, part: Any) -> None:
    assert read((name, part)) == ("text", "Oil prices", {})


def test_a_text_may_begin_as_a_bitmap_does() -> None:
    assert read(("text", file(b"BMW shares fell", "t.txt", "text/plain"))).modality == "text"


def test_an_image_may_be_a_field_in_base64() -> None:
    assert read(("image", "aGk="), ("top_k", "1")) == ("image", "aGk=", {"top_k": "1"})


@pytest.mark.parametrize(
    "empty",
    [
        ("text", ""),
        ("text", " \r\n"),
        ("image", ""),
        ("top_k", ""),
        ("model", " "),
        ("nonsense", ""),
        ("second", file(b"", "", "application/octet-stream")),  # a file that was not chosen
        ("_charset_", "utf-8"),
    ],
)
def test_an_empty_field_is_an_absent_one(empty: tuple[str, Any]) -> None:
    given = ("image", JPEG, {"trace": "true"})
    assert read(empty, ("file", file(JPEG)), ("trace", "true")) == given
    assert read(("file", file(JPEG)), ("trace", "true"), empty) == given


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ([("file", file(JPEG)), ("photo", file(JPEG))], "holds 2 inputs ('file', 'photo')"),
        ([("file", file(JPEG)), ("text", "Oil")], "holds 2 inputs ('file', 'text')"),
        ([("text", "Oil"), ("text", "fell")], "as images or texts"),
        ([("f", file(JPEG))] * 9, "'f', 'f', 'f', 'f', 'f' and 4 more"),
        ([], "no file and no text (it is empty)"),
        ([("inputs", "Oil"), ("top_k", "1")], "(its fields are 'inputs', 'top_k')"),
        ([("text", "")], "the text is empty; send at least one word"),
    ],
)
def test_a_refusal_names_what_came(parts: list[tuple[str, Any]], sentence: str) -> None:
    with pytest.raises(InvalidContent) as refused:
        read(*parts)
    assert sentence in refused.value.detail


@pytest.mark.parametrize("text", ["Oil".encode("utf-16"), b"\xe9t\xe9"])
def test_a_file_of_text_is_utf_8(text: bytes) -> None:
    with pytest.raises(MalformedRequest, match=r"'t\.txt' is a text but not UTF-8"):
        read(("file", file(text, "t.txt", "text/plain")))


def test_a_file_without_bytes_is_an_empty_image() -> None:
    assert read(("file", file(b""))) == ("image", b"", {})
