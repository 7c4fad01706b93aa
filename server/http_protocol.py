"""A connection's HTTP/1.1: one request at a time, bounded in bytes and in seconds.

uvicorn leaves bounds to a proxy in front of it. Without one, a client that sends without end, too
slowly, or without reading its answers holds memory and connections for as long as it likes, and a
request that offers another protocol loses its body.
"""

import asyncio
import math
from typing import Any

import uvicorn
from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from server.errors import BodyTooLarge, MalformedRequest, MethodNotAllowed, ServeError, UrlTooLong
from server.hot_route import HotAnswer
from server.http_connection import TURN_BYTES, WRITE_BYTES, HttpConnection, Phase
from server.intake import SMALL_BODY_BYTES
from server.prediction_paths import takes_samples

CHUNK_BYTES = 32  # of framing that every chunk may have for nothing
SLICE_BYTES, SMALL_SLICE_BYTES = 64 * 1024, 4 * 1024  # of a chunked body, in one turn of the loop
MANY_CHUNKS = 64  # in one slice: each costs more than the bytes of a large one
HEAD_END = b"\r\n\r\n"


def http_config(app: Any, drain_s: int, **options: Any) -> uvicorn.Config:
    """Configure uvicorn: this protocol, and neither its logging nor its access log.

    Args:
        app: The ASGI app.
        drain_s: Seconds that shutdown waits for open requests.
        options: Others of uvicorn's: of TLS, of proxies, or host and port where it gets no sockets.
    """
    return uvicorn.Config(
        app,
        http=HttpProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=drain_s,
        **{"proxy_headers": False, **options},
    )


class _Flow(FlowControl):
    """uvicorn's flow control; while bytes of a connection wait, nothing resumes its reading."""

    held = False

    def resume_reading(self) -> None:
        """Read on, if nothing waits."""
        if not self.held:
            super().resume_reading()


class UnframedSend:
    """Sends an answer to an HTTP/1.0 client, which knows no chunks.

    An answer without a length ends when its connection does.

    Args:
        cycle: uvicorn's, of the request.
    """

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle, self._send, self._is_unframed = cycle, cycle.send, False

    async def __call__(self, message: ASGISendEvent) -> None:
        """Send a part of the answer."""
        if message["type"] == "http.response.start":
            names = [name.lower() for name, _ in message.get("headers", [])]
            self._is_unframed = b"content-length" not in names
            if self._is_unframed:
                self._cycle.chunked_encoding = False
        elif message["type"] == "http.response.body" and self._is_unframed:
            self._cycle.expected_content_length = len(message.get("body", b""))
        await self._send(message)


class HttpProtocol(HttpConnection):
    """uvicorn's protocol, within the bounds of an `Intake`.

    One request at a time: the bytes behind it wait, unparsed, until the client has taken its
    answer. Parts are cut so that none reaches beyond its request: a head and a chunked body end
    with an empty line, and any other body after its length.

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
        self._chunks, self._slice = 0, SMALL_SLICE_BYTES
        self._tail = b""  # the last bytes that were parsed, in which an empty line may begin
        self._unread, self._unread_at = b"", 0  # bytes that wait, from a place on
        self._offered = False
        self._hot_answer: HotAnswer | None = None
        self._hot_body: bytearray | None = None  # of a request that waits for its end

    # From the transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        self.flow = _Flow(transport)
        transport.set_write_buffer_limits(high=WRITE_BYTES)
        self.heard_s = self.loop.time()
        sock = transport.get_extra_info("socket")
        refusal = self._intake.enter(self, 0 if sock is None else sock.fileno())
        if refusal is None:
            self._wait(Phase.FIRST_BYTE, self._intake.limits.first_byte_s)
            return
        self._refuse(refusal)
        if not self._intake.may_linger:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left."""
        super().connection_lost(exc)
        self._intake.held_bytes -= len(self._unread)
        self._unread = b""
        if self._hot is not None and isinstance(self.cycle, HotAnswer):
            self._hot.abandon(self.cycle)

    def shutdown(self) -> None:
        """The server ends: answer what is in, then close."""
        if self._hot_body is not None:  # the app knows how to tell a client that time is over
            self._hand_to_app()
        super().shutdown()

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

    @property
    def _may_begin(self) -> bool:
        """Whether no answer is due or waits to be taken."""
        return (self.cycle is None or self.cycle.response_complete) and not self.flow.write_paused

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

    def _wait(self, phase: Phase, limit_s: float = math.inf) -> None:
        self._phase = phase
        self.due_s = self.loop.time() + limit_s
        if self.due_s < self._intake.next_look_s:
            self._intake.look_at(self.due_s)

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

    def on_headers_complete(self) -> None:
        """The head is whole: the request may be answered."""
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise MethodNotAllowed(
                    "CONNECT is not taken, for this server is no proxy; send the request itself",
                    {"Allow": "GET, POST, PUT"},
                )
            self._offered = True
            return
        self._in_head = False
        self._body_left = self._announced()
        refusal = self._refusal_by_head()
        if refusal is not None:
            self._turn_away(refusal)
        elif self._is_hot():
            self._hot_body = bytearray()
        else:
            self._give_to_app()

    def _announced(self) -> int | None:
        """Bytes of the body; None if it is chunked. The parser has refused all other lengths."""
        length: int | None = 0
        for name, value in self.headers:
            if name == b"content-length":
                length = int(value)
            elif name == b"transfer-encoding":
                length = None
        return length

    def _refusal_by_head(self) -> ServeError | None:
        """Why the request is refused before its body is read, if it is."""
        length, limits = self._body_left, self._intake.limits
        if length is not None and length > limits.max_body:
            return BodyTooLarge(
                f"the body is larger than the limit of {limits.max_body} bytes; send less at once"
            )
        if length:
            most = limits.max_held if length <= SMALL_BODY_BYTES else self._intake.most_large
            if self._intake.held_bytes + length > most:
                if not self._intake.find_room(length, most):
                    return self._intake.bytes_full(most)
        if self._hot is not None and self._is_prediction():
            return self._hot.refusal
        return None

    def _refuse(self, refusal: ServeError) -> None:
        self._hot_body = None
        super()._refuse(refusal)

    def _is_prediction(self) -> bool:
        if self.parser.get_method() != b"POST":
            return False
        path = self.url.partition(b"?")[0]
        assert self._hot is not None, "only a server with the route knows its paths"
        return path in self._hot.paths or takes_samples(path.decode("latin-1"))

    def _is_hot(self) -> bool:
        """Whether the request that begins may be answered without the app."""
        return (
            self._hot is not None
            and self.url in self._hot.paths
            and self.parser.get_method() == b"POST"
            and self._hot.takes(self.headers)
        )

    def _answer_hot(self, body: bytes) -> bool:
        """Begin to answer a request that is whole; return False if the app should."""
        assert self._hot is not None, "only a connection with the route waits for its requests"
        if self._hot_answer is None:
            self._hot_answer = HotAnswer(self, self.server_state.default_headers)
        answer = self._hot_answer
        answer.start(
            keep_alive=self.parser.get_http_version() != "1.0"
            and self.parser.should_keep_alive()
            and not self._ends
        )
        before, self.cycle = self.cycle, answer  # type: ignore[assignment]
        if self._hot.begin(answer, self.headers, body):
            return True
        answer.response_complete = True
        self.cycle = before
        return False

    def _hand_to_app(self) -> None:
        """Let the app answer a request whose body was kept so far."""
        body, self._hot_body = self._hot_body, None
        self._give_to_app()
        if body:
            super().on_body(bytes(body))

    def _give_to_app(self) -> None:
        self._is_given_away = True
        super().on_headers_complete()
        self.cycle.keep_alive &= not self._ends
        if self.parser.get_http_version() == "1.0":
            self.cycle.send = UnframedSend(self.cycle)  # type: ignore[method-assign]

    def write_answer(self, answer: HotAnswer, data: bytes) -> None:
        """Write the whole response, and go on to the next request."""
        self.transport.write(data)
        if not answer.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def on_chunk_header(self) -> None:
        """A chunk begins."""
        self._overhead -= CHUNK_BYTES
        self._chunks += 1

    def on_body(self, body: bytes) -> None:
        """A part of the body came."""
        size = len(body)
        self._overhead -= size
        if self._body_left is not None:
            self._body_left -= size
        if self._hot_body is not None:
            self._hot_body += body
        elif self.cycle.response_complete:
            return
        else:
            super().on_body(body)
        self._held += size
        intake = self._intake
        if self._held <= SMALL_BODY_BYTES and intake.held_bytes + size <= intake.limits.max_held:
            intake.held_bytes += size  # most bodies: there is room
        else:
            intake.hold(size, self._held)

    def _release(self) -> None:
        self._intake.held_bytes -= self._held
        self._held = 0

    def on_message_complete(self) -> None:
        """The request is whole; what follows belongs to the next."""
        if self._offered:  # it is not: the parser skipped the body
            return
        self._in_head = self._ended = self._whole = True
        self._overhead = self._trailers = self._trailer_bytes = self._chunks = 0
        self._body_left, self._tail = 0, b""
        if self._hot_body is not None:
            if self._answer_hot(bytes(self._hot_body)):
                self._hot_body = None
                return
            self._hand_to_app()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """An answer is out: the next request's turn, once the client has taken it."""
        self.server_state.total_requests += 1
        self._intake.drained_bytes += self._held
        self._release()
        if self.transport.is_closing() or self.flow.write_paused:
            self._await_taking()
        elif self._unread:
            self.loop.call_soon(self._go_on)
        else:
            self._settle()
            self.flow.resume_reading()
