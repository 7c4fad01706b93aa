"""Which charsets a client may name, and that no other is ever looked up."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from server.errors import UnsupportedMedia
from server.forms import parse_form, require_utf_8

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


HEADER = b"x: y\r\n"
HOSTILE = {
    "parts": (part('name="x"', b"") * 100_000 + b"--B--\r\n", 422, "too_complex"),
    "headers": (b"--B\r\n" + HEADER * 300_000 + b"\r\nx\r\n--B--", 422, "too_complex"),
    "few headers": (b"--B\r\n" + HEADER * 17 + b"\r\nx\r\n--B--", 422, "too_complex"),
    "a long header": (part('name="' + "x" * 5000 + '"', b"a") + b"--B--", 422, "too_complex"),
    "boundaries": (b"--B\r\n" * 300_000, 422, "too_complex"),
    "line ends": (b"--B" + b"\r" * 10**6, 400, "malformed"),
    "no end": (part('name="text"', b"\r\n--A" * 10**5), 400, "malformed"),
    "no begin": (b"\r\n--" * 10**6, 400, "malformed"),
    "no name": (part("x=y", b"a") + b"--B--", 400, "malformed"),
    "no colon": (b"--B\r\nname\r\n\r\na\r\n--B--", 400, "malformed"),
    "nothing": (b"", 400, "malformed"),
    "another charset": (part('name="text"', b"\xff\xfe") + b"--B--", 400, "malformed"),
}


@pytest.mark.parametrize(("body", "status", "code"), HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_forms_are_refused(client: TestClient, body: bytes, status: int, code: str) -> None:
    detail = problem(client, FORM, body)
    assert (detail["status"], detail["code"]) == (status, code)


def test_what_is_too_complex_is_counted(client: TestClient) -> None:
    def count() -> str:
        lines = client.get("/metrics").text.splitlines()
        return next(line for line in lines if 'reason="too_complex"' in line)

    before = count()
    problem(client, FORM, HOSTILE["parts"][0])
    assert count() != before


@pytest.mark.parametrize("type_", [f"{FORM}; charset={'a' * 30_000}", FORM + ';"' * 15_000])
def test_a_content_type_is_bounded(client: TestClient, looked_up: list[str], type_: str) -> None:
    detail = problem(client, type_, part('name="text"', b"a") + b"--B--")
    assert detail["status"] == 415 and "1000 are the most" in detail["detail"]
    assert looked_up == []


@given(st.lists(st.tuples(st.text(max_size=9), st.binary(max_size=60), st.booleans()), max_size=9))
def test_every_form_is_read_as_it_was_written(parts: list[tuple[str, bytes, bool]]) -> None:
    body = b"preamble\r\n"
    for name, value, is_file in parts:
        file = b'; filename="a b.jpg"\r\nContent-Type: image/jpeg' if is_file else b""
        head = b'Content-Disposition: form-data; name="n%s"%s' % (
            name.encode().hex().encode(),
            file,
        )
        body += b"--B0-\r\n%s\r\n\r\n%s\r\n" % (head, value if is_file else value.hex().encode())
    form = parse_form("multipart/form-data; boundary=B0-", body + b"--B0---\r\nepilogue", 9)
    read = []
    for name, value in form.multi_items():
        content = value if isinstance(value, str) else value.file.read()
        read.append((name, content, not isinstance(value, str)))
    assert read == [
        ("n" + name.encode().hex(), value if is_file else value.hex(), is_file)
        for name, value, is_file in parts
        if b"\r\n--B0-" not in value
    ]


def form_of(fields: str, value: bytes) -> Any:
    (part_,) = parse_form(FORM, part(fields, value) + b"--B--\r\n", 1).multi_items()
    return part_


@pytest.mark.parametrize(
    ("encoding", "sent"),
    [("binary", b"Oil"), ("8BIT", b"Oil"), ("base64", b"T2ls"), ("Base64", b"T2\r\nls\r\n")],
)
def test_parts_may_be_encoded_as_in_a_mail(encoding: str, sent: bytes) -> None:
    fields = f'name="text"\r\nContent-Transfer-Encoding: {encoding}'
    assert form_of(fields, sent) == ("text", "Oil")
    name, file = form_of(f'name="f"; filename="a"\r\nContent-Transfer-Encoding: {encoding}', sent)
    assert (name, file.file.read(), file.size) == ("f", b"Oil", 3)


@pytest.mark.parametrize(
    ("encoding", "status", "sentence"),
    [
        (
            "quoted-printable",
            415,
            "has the transfer encoding 'quoted-printable'; send it in binary",
        ),
        ("x" * 500, 415, "send it in binary"),
        ("base64", 400, "is not the base64 that it says"),
    ],
)
def test_other_transfer_encodings_are_refused(
    client: TestClient, encoding: str, status: int, sentence: str
) -> None:
    fields = f'name="file"; filename="a"\r\nContent-Transfer-Encoding: {encoding}'
    detail = problem(client, FORM, part(fields, b"!!!") + b"--B--\r\n")
    assert detail["status"] == status and sentence in detail["detail"]
