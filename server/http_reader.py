"""The bytes of a connection, cut into requests, and the bounds of all that is no body."""

from typing import Any

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT

from server.errors import HeadTooLarge, MalformedRequest, ServeError, UrlTooLong
from server.http_connection import TURN_BYTES, HttpConnection, Phase

CHUNK_BYTES = 32  # of framing that every chunk may have for nothing
SLICE_BYTES, SMALL_SLICE_BYTES = 64 * 1024, 4 * 1024  # of a chunked body, in one turn of the loop
MANY_CHUNKS = 64  # in one slice: each costs more than the bytes of a large one
HEAD_END = b"\r\n\r\n"


class HttpReader(HttpConnection):
    """Parses one request at a time; `HttpProtocol` answers it.

    The bytes behind a request wait, unparsed, until the client has taken its answer. Parts are cut
    so that none reaches beyond its request: a head and a chunked body end with an empty line, and
    any other body after its length.

    Bytes: the parser hands out a URL or a header only once it is whole and keeps what it has of it
    meanwhile. So this counts what comes in and takes off what comes out as body. What is left
    belongs to the head, to chunk lines or to trailers, whether it is whole or not.

    Offers (`Upgrade: h2c`, `websocket`, `TLS/1.0`): httptools takes for granted that they are
    accepted. It skips the body and stops. The head is then read again without the offer, by a new
    parser, for the old one still holds the length of the body that it skipped.

    Args:
        args: uvicorn's.
        kwargs: uvicorn's.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True  # or between two requests
        self._ended = False  # a request, among the bytes that were parsed last
        self._overhead = 0  # bytes of this request that are not its body
        self._trailers = self._trailer_bytes = 0
        self._body_left: int | None = 0  # bytes; of a chunked body unknown
        self._chunks, self._slice = 0, SMALL_SLICE_BYTES
        self._tail = b""  # the last bytes that were parsed, in which an empty line may begin
        self._unread, self._unread_at = b"", 0  # bytes that wait, from a place on
        self._offered = False

    # From the transport

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left."""
        super().connection_lost(exc)
        self._intake.held_bytes -= len(self._unread)
        self._unread = b""

    def data_received(self, data: bytes) -> None:
        """Parse what came in."""
        self.heard_s = self.loop.time()
        if self._refusal is not None:
            self._discard(len(data))
        elif self._unread:  # a read that was under way when reading was paused
            at, waiting = self._unread_at, self._unread
            self._intake.held_bytes -= len(waiting)
            self._tail = b"" if self._whole else waiting[max(at - 3, 0) : at]
            self._put_off(waiting[at:] + data, 0)
        else:
            self._read(data, 0)
            if len(data) >= TURN_BYTES and not self.flow.read_paused:
                # The event loop would go on to read from this connection, some 8 MiB at a time.
                self.flow.pause_reading()
                self.loop.call_soon(self._go_on)

    def resume_writing(self) -> None:
        """The client has taken most of an answer."""
        super().resume_writing()
        if self._phase is not Phase.TAKING or self.transport.is_closing():
            return
        self._wait(Phase.ANSWER)
        if self._may_begin:
            self._go_on()

    # One request at a time

    def _read(self, data: bytes, start: int) -> None:
        """Parse the bytes of one request; those behind it wait."""
        self._intake.idle.pop(self, None)
        if self._whole and not self._may_begin:
            self._put_off(data, start)
            return
        view = memoryview(data)
        while start < len(data):
            end = self._end_of_part(data, start)
            if end == start:
                self._refuse(self._too_large())
                return
            self._take(data if end - start == len(data) else view[start:end])
            start = end
            if self._refusal is not None or self.transport.is_closing():
                return
            if start < len(data) and (self._ended or self._body_left is None):
                self._put_off(data, start)  # others have their turn
                self.loop.call_soon(self._go_on)
                return
        if not self._whole:
            self._tail = (self._tail + data[-3:])[-3:]
        self._settle()

    def _settle(self) -> None:
        """Start the clock of what the connection waits for now."""
        limits = self._intake.limits
        if not self._whole and not self._in_head:
            if self._phase is not Phase.BODY:
                self._wait(Phase.BODY, limits.body_s)
        elif not self._whole or self._overhead:
            if self._phase is not Phase.HEAD:
                self._wait(Phase.HEAD, limits.head_s)
        elif self._may_begin and self._ends:
            self.transport.close()
        elif self._may_begin:
            self._wait(Phase.IDLE, limits.keep_alive_s)
            self._intake.idle[self] = None
        elif self._phase is not Phase.TAKING:
            self._wait(Phase.ANSWER)

    def _put_off(self, data: bytes, start: int) -> None:
        """Keep bytes for later, and read no more meanwhile."""
        self._intake.idle.pop(self, None)
        self._unread, self._unread_at = data, start
        self._intake.held_bytes += len(data)
        self.flow.pause_reading()
        self.flow.held = True  # type: ignore[attr-defined]
        if self._intake.held_bytes > self._intake.limits.max_held:
            error = self._intake.bytes_full(self._intake.limits.max_held)
            self._intake.refusals.record_error(error)
            self.transport.abort()
        elif not self._whole:
            self._settle()
        elif self._phase is not Phase.TAKING:
            self._wait(Phase.ANSWER)

    def _go_on(self) -> None:
        """Parse what waits, if its turn has come; else read on."""
        if self._refusal is not None or self.transport.is_closing():
            return
        if self._unread:
            if self._whole and not self._may_begin:
                return
            data, start = self._unread, self._unread_at
            self._unread = b""
            self._intake.held_bytes -= len(data)
            self._read(data, start)
            if self._unread or self._refusal is not None or self.transport.is_closing():
                return
        else:
            self._settle()
        self.flow.held = False  # type: ignore[attr-defined]
        skips = self._may_begin  # what is left of a body that is answered
        if self._whole or skips or len(getattr(self.cycle, "body", b"")) <= HIGH_WATER_LIMIT:
            self.flow.resume_reading()

    def _end_of_part(self, data: bytes, start: int) -> int:
        """Where to stop: at the end of a head or of a body, and not beyond a bound."""
        if self._in_head:
            limit = start + self._intake.limits.max_head - self._overhead
        elif self._body_left is not None:
            return min(len(data), start + self._body_left)
        else:
            few = self._chunks <= MANY_CHUNKS
            self._slice, self._chunks = SLICE_BYTES if few else SMALL_SLICE_BYTES, 0
            limit = start + self._slice
        if start == 0 and self._tail:
            place = (self._tail + data[:3]).find(HEAD_END)
            if place >= 0:
                return min(place + 4 - len(self._tail), limit)
        place = data.find(HEAD_END, max(start - 3, 0), limit)
        return min(place + 4 if place >= 0 else len(data), limit)

    def _take(self, data: bytes | memoryview) -> None:
        self._ended = False
        self._overhead += len(data)
        try:
            self._parse(data)
        except HttpParserError as error:
            known = error.__context__
            if not isinstance(known, ServeError):
                known = MalformedRequest(
                    f"the request is not HTTP/1.1 ({error}); check its request line, headers, "
                    f"length and chunks"
                )
            self._refuse(known)
            return
        if self._overhead > self._intake.limits.max_head:
            self._refuse(self._too_large())
        elif self._overhead < 0:  # what many small chunks left over is no credit for a long line
            self._overhead = 0

    def _parse(self, data: bytes | memoryview) -> None:
        while data:
            try:
                self.parser.feed_data(data)
                return
            except HttpParserUpgrade as offer:
                behind_head: int = offer.args[0]
            data = memoryview(data)[behind_head:]
            self._read_again_without_offer()

    def _read_again_without_offer(self) -> None:
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (method, self.url, version)]
        # The parser accepts no line end within a value, so each is one line again.
        lines += [b"%s: %s" % field for field in self.headers if field[0] != b"upgrade"]
        self._offered = False
        self._whole = True  # until the head begins again
        self.parser = HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self.parser.feed_data(b"\r\n".join([*lines, b"", b""]))

    # From the parser

    def on_message_begin(self) -> None:
        """A request begins."""
        if not self._whole or not self._may_begin:
            raise MalformedRequest("a request begins where none can; end each with an empty line")
        self._whole = self._is_given_away = False
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A part of the URL came."""
        super().on_url(url)
        if len(self.url) > self._intake.limits.max_url:
            raise UrlTooLong(
                f"the URL is too long: {self._intake.limits.max_url} bytes are the most; send data "
                f"in the body"
            )

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header or, behind a chunked body, a trailer is whole."""
        limits = self._intake.limits
        if not self._in_head:
            # Nobody reads trailers, and uvicorn would add them to the headers of the request.
            self._trailers += 1
            self._trailer_bytes += len(name) + len(value)
            if self._trailers > limits.max_fields or self._trailer_bytes > limits.max_head:
                raise self._too_large()
            return
        if len(self.headers) == limits.max_fields:
            raise self._too_large()
        super().on_header(name, value)

    def on_chunk_header(self) -> None:
        """A chunk begins."""
        self._overhead -= CHUNK_BYTES
        self._chunks += 1

    # Bounds

    def _too_large(self) -> ServeError:
        limits = self._intake.limits
        return HeadTooLarge(
            f"the headers are too large: {limits.max_fields} fields and {limits.max_head} bytes "
            f"are the most, chunk extensions and trailers included; send fewer"
        )
