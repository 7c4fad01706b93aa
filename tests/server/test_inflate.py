"""Compressed bodies: what is taken, what is refused, and that a bomb is bounded."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient
from starlette.types import Message

from server.decode_pool import DecodePool
from server.errors import BytesFull, MalformedRequest, TooComplex, UnsupportedMedia
from server.inflate import (
    MOST_MEMBERS,
    SMALL_STEP_BYTES,
    STEP_BYTES,
    Gunzip,
    InflatedBody,
    is_compressed,
)
from server.intake import Intake
from server.limits import Limits

if TYPE_CHECKING:
    from tests.conftest import Images

GZIP = {"content-encoding": "gzip"}
JSON = {"content-type": "application/json"}


def inflate(parts: list[bytes], most: int = 1000) -> bytes:
    gunzip, whole = Gunzip(), b""
    for part in parts:
        gunzip.feed(part)
        while read := gunzip.read(most):
            assert len(read) <= most
            whole += read
    gunzip.finish()
    return whole


@given(
    st.lists(st.binary(max_size=300), min_size=1, max_size=4),
    st.integers(1, 500),
    st.integers(1, 400),
)
def test_members_are_inflated_whatever_the_parts(
    members: list[bytes], size: int, most: int
) -> None:
    packed = b"".join([gzip.compress(member, mtime=0) for member in members])
    parts = [packed[at : at + size] for at in range(0, len(packed), size)]
    assert inflate(parts, most) == b"".join(members)


WHOLE = gzip.compress(b"Oil prices fell. " * 20, mtime=0)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"{}", "the body is not gzip, or damaged"),
        (zlib.compress(b"deflate"), "the body is not gzip, or damaged"),
        (WHOLE[:-9] + b"\xff" + WHOLE[-8:], "the body is not gzip, or damaged"),
        (WHOLE[:-8] + bytes(8), "the body is not gzip, or damaged"),  # another checksum
        (WHOLE[:-1], "cut off"),
        (WHOLE[:12], "cut off"),
        (b"", "empty"),
        (WHOLE + b"more", "follow the first gzip member"),
        (WHOLE + bytes(512), "follow the first gzip member"),
        (WHOLE + WHOLE[:-1], "cut off"),
    ],
)
def test_what_is_not_whole_gzip_is_malformed(body: bytes, sentence: str) -> None:
    with pytest.raises(MalformedRequest, match=sentence):
        inflate([body])


def test_empty_members_are_bounded() -> None:
    empty = gzip.compress(b"", mtime=0)
    assert inflate([empty * MOST_MEMBERS]) == b""
    with pytest.raises(TooComplex, match="compress it as one"):
        inflate([empty * (MOST_MEMBERS + 1)])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], False),
        ([""], False),
        (["identity"], False),
        (["gzip"], True),
        ([" GZip "], True),
        (["x-gzip"], True),
        (["identity, gzip"], True),
        (["identity", "gzip"], True),
    ],
)
def test_gzip_once_or_nothing_is_taken(values: list[str], expected: bool) -> None:
    assert is_compressed(values) == expected


@pytest.mark.parametrize(
    "values", [["br"], ["deflate"], ["zstd"], ["gzip, gzip"], ["gzip", "br"], ["x" * 5000]]
)
def test_other_encodings_are_refused_by_name(values: list[str]) -> None:
    with pytest.raises(UnsupportedMedia, match="compressed once by gzip") as refused:
        is_compressed(values)
    assert values[0][:9] in refused.value.detail and len(refused.value.detail) < 200
    assert refused.value.headers == {"Accept-Encoding": "gzip, identity"}


async def receive_all(body: InflatedBody) -> list[bytes]:
    parts = []
    while (message := await body.receive())["type"] == "http.request":
        parts.append(message["body"])
        if not message["more_body"]:
            break
    return parts


def sender(parts: list[bytes], end: Message | None = None) -> InflatedBody:
    """A body in parts."""
    messages: list[Message] = [
        {"type": "http.request", "body": part, "more_body": at < len(parts) - 1 or end is not None}
        for at, part in enumerate(parts)
    ]
    messages += [] if end is None else [end]

    async def receive() -> Message:
        return messages.pop(0)

    return InflatedBody(receive, None, None)


def with_room(body: InflatedBody, max_held: int, pool: DecodePool) -> Intake:
    """Let a body count at an intake, and inflate on a thread."""
    intake = Intake(Limits(max_held=max_held))
    body._intake, body._pool = intake, pool
    return intake


def test_a_large_body_comes_in_steps_and_counts_until_it_is_released() -> None:
    content, pool = b"0123456789abcdef" * 2**18, DecodePool(1)
    body = sender([gzip.compress(content, mtime=0)])
    intake = with_room(body, 2**30, pool)
    parts = asyncio.run(receive_all(body))
    pool.shutdown()
    assert b"".join(parts) == content
    assert max(map(len, parts)) <= STEP_BYTES
    assert intake.held_bytes == len(content)
    body.release()
    assert intake.held_bytes == 0


def test_a_bomb_ends_where_there_is_no_room() -> None:
    body, pool = sender([gzip.compress(bytes(16 * 2**20), 1)]), DecodePool(1)
    intake = with_room(body, 4 * 2**20, pool)
    with pytest.raises(BytesFull):
        asyncio.run(receive_all(body))
    pool.shutdown()
    assert intake.held_bytes <= 5 * 2**20
    body.release()
    assert intake.held_bytes == 0


def test_a_client_that_leaves_half_way_is_noticed() -> None:
    body = sender([gzip.compress(b"text", mtime=0)[:9]], {"type": "http.disconnect"})
    assert asyncio.run(body.receive()) == {"type": "http.disconnect"}


def test_small_steps_need_no_thread() -> None:
    body = sender([gzip.compress(bytes(3 * SMALL_STEP_BYTES))])
    assert max(map(len, asyncio.run(receive_all(body)))) <= SMALL_STEP_BYTES


def test_compressed_bodies_of_every_shape_are_answered(client: TestClient, images: Images) -> None:
    file = images.files[0]
    plain = client.post("/predict", content=file, headers={"content-type": "image/jpeg"}).json()
    for content_type, body in [
        ("image/jpeg", file),
        ("application/octet-stream", file),
        ("application/json", json.dumps({"image": file.hex(), "model": "nope"}).encode()),
        ("image/jpeg", file + bytes(3 * 2**20)),
        ("multipart/form-data; boundary=b",
         b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n%s\r\n--b--\r\n'
         % file),
    ]:  # fmt: skip
        for packed in (
            gzip.compress(body, mtime=0),
            gzip.compress(body[:99]) + gzip.compress(body[99:]),
        ):
            headers = {**GZIP, "content-type": content_type}
            answer = client.post("/predict", content=packed, headers=headers).json()
            assert answer.get("label", answer.get("code")) in (plain["label"], "unknown_model")


def test_other_routes_inflate_too(client: TestClient) -> None:
    packed = gzip.compress(b'{"request_id": "nobody", "label": "ship"}', mtime=0)
    answer = client.post("/feedback", content=packed, headers=JSON | GZIP)
    assert answer.json()["code"] == "unknown_answer"
    refused = client.put("/budget", content=b"{}", headers=JSON | {"content-encoding": "br"})
    assert refused.status_code == 415
    assert refused.headers["accept-encoding"] == "gzip, identity"


def test_the_bound_on_a_body_holds_for_what_it_inflates_to(client: TestClient) -> None:
    bomb = gzip.compress(bytes(33 * 2**20), 1)
    answer = client.post("/predict", content=bomb, headers={"content-type": "image/png"} | GZIP)
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
    answer = client.put("/budget", content=gzip.compress(bytes(70_000)), headers=JSON | GZIP)
    assert answer.status_code == 413
    assert client.app.state.intake.held_bytes == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("body", [b"{}", WHOLE[:-2], b""])
def test_a_body_that_is_not_gzip_is_400(client: TestClient, body: bytes) -> None:
    answer = client.post("/predict", content=body, headers=JSON | GZIP)
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed")
