"""Bodies that come compressed (`Content-Encoding: gzip`), inflated within the bounds of a body.

A few KiB may hold gigabytes, or a million empty members. So a body is inflated a step at a time,
each step counts towards the bytes in flight, and steps of any size run on a thread.
"""

import asyncio
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager

from starlette.types import Message, Receive, Scope

from server.errors import MalformedRequest, TooComplex, UnsupportedMedia
from server.intake import Intake

GZIP, NONE = ("gzip", "x-gzip"), ("", "identity")
GZIP_WINDOW = 31  # zlib's number for a gzip header, a window of 32 KiB and a checksum
MOST_MEMBERS = 1000  # bgzip writes one for every 64 KiB
# Inflated by the event loop, in less time than a thread needs to be asked.
SMALL_BYTES, SMALL_STEP_BYTES = 4 * 1024, 16 * 1024
STEP_BYTES = 2**20


def is_compressed(encodings: Sequence[str]) -> bool:
    """Whether a body is compressed by gzip, by the values of its `Content-Encoding` headers.

    Raises:
        UnsupportedMedia: If it is encoded in any other way, or more than once.
    """
    names = [name.strip().lower() for name in ",".join(encodings).split(",")]
    applied = [name for name in names if name not in NONE]
    if len(applied) > 1 or any(name not in GZIP for name in applied):
        raise UnsupportedMedia(
            f"content encoding {', '.join(applied)[:40]!r} is not taken; send the body as it is, "
            f"or compressed once by gzip",
            {"Accept-Encoding": "gzip, identity"},
        )
    return bool(applied)


class Gunzip:
    """Inflates a stream of gzip members, as far as it has come."""

    def __init__(self) -> None:
        self._waiting = b""
        self._member: zlib._Decompress | None = None
        self._begun = 0  # members

    @property
    def waiting_bytes(self) -> int:
        """Compressed bytes that have not been read."""
        return len(self._waiting)

    @property
    def between_members(self) -> bool:
        """Whether all that has come is read, and the last member has ended."""
        return self._member is None and not self._waiting

    def feed(self, data: bytes) -> None:
        """Add compressed bytes."""
        self._waiting += data

    def read(self, most: int) -> bytes:
        """Return the next bytes, up to `most`; none if more compressed ones are needed.

        Raises:
            MalformedRequest: If the bytes are not gzip, or damaged.
            TooComplex: If there are too many members.
        """
        part = b""
        while not part and not self.between_members:
            member = self._member or self._begin()
            try:
                part = member.decompress(self._waiting, most)
            except zlib.error as error:
                raise self._damaged() from error
            if member.eof:
                self._member, self._waiting = None, member.unused_data
                continue
            self._waiting = member.unconsumed_tail
            if not self._waiting:
                break
        return part

    def finish(self) -> None:
        """Check that the last member is whole.

        Raises:
            MalformedRequest: If it is not, or there is none.
        """
        if self._member is not None:
            raise MalformedRequest("the gzip body is cut off; send all of it")
        if not self._begun:
            raise MalformedRequest("the gzip body is empty; leave out Content-Encoding")

    def _begin(self) -> "zlib._Decompress":
        self._begun += 1
        if self._begun > MOST_MEMBERS:
            raise TooComplex(
                f"the gzip body has more than {MOST_MEMBERS} members; compress it as one"
            )
        self._member = zlib.decompressobj(GZIP_WINDOW)
        return self._member

    def _damaged(self) -> MalformedRequest:
        if self._begun == 1:
            return MalformedRequest(
                "the body is not gzip, or damaged, though Content-Encoding says gzip; send it as "
                "it is without that header, or compress it again"
            )
        return MalformedRequest(
            "bytes that are not gzip, or damaged, follow the first gzip member; send the members "
            "alone"
        )


class InflatedBody:
    """Receives a compressed body and hands it on inflated, in parts.

    Args:
        receive: The request's.
        intake: Counts what is in flight; None where nothing does.
        pool: Runs the steps; None where bodies are so small that the event loop does.
    """

    def __init__(self, receive: Receive, intake: Intake | None, pool: Executor | None) -> None:
        self._receive, self._intake, self._pool = receive, intake, pool
        self._gunzip = Gunzip()
        self._comes = True  # more of the compressed body
        self._whole = False
        self._held = 0

    async def receive(self) -> Message:
        """Return the next part of the body; behind it, whatever the connection says."""
        while not self._whole:
            if part := await self._read():
                if self._intake is not None:
                    self._held += len(part)
                    self._intake.hold(len(part), self._held)
                return {"type": "http.request", "body": part, "more_body": True}
            if self._comes:
                message = await self._receive()
                if message["type"] != "http.request":
                    return message
                self._gunzip.feed(message.get("body", b""))
                self._comes = message.get("more_body", False)
                continue
            self._gunzip.finish()
            self._whole = True
            return {"type": "http.request", "body": b"", "more_body": False}
        return await self._receive()

    def release(self) -> None:
        """Let others have the room: the request is answered."""
        if self._intake is not None:
            self._intake.held_bytes -= self._held
        self._held = 0

    async def _read(self) -> bytes:
        gunzip = self._gunzip
        is_small = self._held == 0 and gunzip.waiting_bytes <= SMALL_BYTES
        if self._pool is None or is_small or gunzip.between_members:
            return gunzip.read(SMALL_STEP_BYTES)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, gunzip.read, STEP_BYTES)


@contextmanager
def inflated(scope: Scope, encodings: Sequence[str], receive: Receive) -> Iterator[Receive]:
    """Make a `receive` of the inflated body; the same one if the body is not compressed.

    Raises:
        UnsupportedMedia: As `is_compressed`.
    """
    if not encodings or not is_compressed(encodings):
        yield receive
        return
    state = getattr(scope.get("app"), "state", None)
    front = getattr(state, "front", None)
    pool = None if front is None else front.parse_pool
    body = InflatedBody(receive, getattr(state, "intake", None), pool)
    try:
        yield body.receive
    finally:
        body.release()
