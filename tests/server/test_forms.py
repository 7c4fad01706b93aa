"""Which charsets a client may name, and that no other is ever looked up."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from starlette.testclient import TestClient

from server.errors import UnsupportedMedia
from server.forms import require_utf_8

if TYPE_CHECKING:
    from tests.conftest import Images

FORM = "multipart/form-data; boundary=B"
REFUSED = [
    "charset=punycode",
    "charset=undefined",
    "charset=utf-16",
    "charset=latin-1",
    "charset=rot13",
    "charset=",
    "charset=" + "a" * 900,
    "Charset = punycode",
    'charset="punycode"',
    'charset="pun\\ycode"',
    'charset="utf-8 "',
    "charset=utf-8; charset=punycode",
    "charset=punycode; charset=utf-8",
    "charset*=utf-8''punycode",
    "charset*=punycode'en'utf-8",
    "charset*0=puny; charset*1=code",
    "charset*0*=UTF-8''idna",
]
TAKEN = [
    "charset=utf-8",
    "charset=UTF8",
    'charset="UTF-8"',
    "charset=us-ascii",
    "charset*=utf-8''utf-8",
]


def part(fields: str, value: bytes) -> bytes:
    return b"--B\r\nContent-Disposition: form-data; %s\r\n\r\n%s\r\n" % (fields.encode(), value)


def problem(client: TestClient, content_type: str, body: bytes) -> dict[str, Any]:
    answer = client.post("/predict", content=body, headers={"content-type": content_type})
    detail: dict[str, Any] = answer.json()
    assert len(answer.content) < 1000
    return detail


@pytest.fixture
def looked_up(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that are handed to the codecs."""
    names: list[str] = []
    lookup: Callable[[str], codecs.CodecInfo] = codecs.lookup

    def watched(name: str) -> codecs.CodecInfo:
        names.append(name)
        return lookup(name)

    monkeypatch.setattr(codecs, "lookup", watched)
    return names


@pytest.mark.parametrize("charset", REFUSED, ids=lambda charset: charset[:40])
def test_other_charsets_are_refused_before_they_are_looked_up(
    client: TestClient, looked_up: list[str], charset: str
) -> None:
    body = part('name="text"', b"-" + b"a" * 1000) + b"--B--\r\n"
    detail = problem(client, f"{FORM}; {charset}", body)
    assert (detail["status"], detail["code"]) == (415, "unsupported_media_type")
    assert "send UTF-8" in detail["detail"]
    assert looked_up == []


@pytest.mark.parametrize("charset", ["charset=punycode", "charset=latin-1", 'profile="charset=x"'])
def test_json_is_utf_8_whatever_its_content_type_says(
    client: TestClient, looked_up: list[str], charset: str
) -> None:
    detail = problem(client, f"application/json; {charset}", b'{"image": "!"}')
    assert (detail["status"], detail["code"]) == (422, "invalid_content")
    assert "base64" in detail["detail"] and looked_up == []


@pytest.mark.parametrize(
    "parameters",
    ["boundary=xcharset=9", 'boundary="abc; charset=x"', 'boundary=B; x="charset=punycode"',
     "boundary=B"],
)  # fmt: skip
def test_only_the_charset_itself_names_a_charset(parameters: str) -> None:
    require_utf_8(f"multipart/form-data; {parameters}")


@pytest.mark.parametrize("charset", REFUSED[:1] + REFUSED[-3:])
def test_the_charset_of_a_text_is_utf_8_too(client: TestClient, charset: str) -> None:
    fields = f'name="text"\r\nContent-Type: text/plain; {charset}'
    detail = problem(client, FORM, part(fields, b"Oil prices") + b"--B--\r\n")
    assert detail["status"] == 415


def test_the_charset_field_of_browsers_is_utf_8_too(client: TestClient, images: Images) -> None:
    image = part('name="file"; filename="a.jpg"', images.files[0]) + b"--B--\r\n"
    detail = problem(client, FORM, part('name="_charset_"', b"utf-16") + image)
    assert detail["status"] == 415
    answer = problem(client, FORM, part('name="_charset_"', b"UTF-8") + image)
    assert answer["model"] == "cifar10-resnet56"


@pytest.mark.parametrize("charset", TAKEN)
def test_utf_8_is_taken_by_all_its_names(client: TestClient, images: Images, charset: str) -> None:
    require_utf_8(f"text/plain; {charset}")
    image = part('name="file"; filename="a.jpg"', images.files[0]) + b"--B--\r\n"
    assert "label" in problem(client, f"{FORM}; {charset}", image)


def test_no_charset_is_utf_8() -> None:
    require_utf_8("multipart/form-data")
    require_utf_8("multipart/form-data; boundary=charset")
    with pytest.raises(UnsupportedMedia):
        require_utf_8("text/plain; charset=utf-7")


def test_a_form_without_a_boundary_is_400(client: TestClient) -> None:
    detail = problem(client, "multipart/form-data", b"--B\r\nnothing")
    assert (detail["status"], detail["code"]) == (400, "malformed")
