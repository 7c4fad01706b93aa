"""A connection's HTTP/1.1: heads of bounded size, and never another protocol.

uvicorn leaves both to a proxy in front of it. Without one, a single endless header costs memory
without limit and time in its square, and a request that offers another protocol loses its body.
"""

import asyncio
import os
from typing import Any

import uvicorn
from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from server.errors import HeadTooLarge, MethodNotAllowed, ServeError, UrlTooLong
from server.hot_route import PATH, HotAnswer, HotRoute
from server.problems import problem_response

MAX_HEAD_BYTES = 32 * 1024  # of all that is not a body: head, chunk sizes and extensions, trailers
MAX_FIELDS = 100
CHUNK_BYTES = 32  # of framing that every chunk may have for nothing
LINGER_S, LINGER_BYTES = 1.0, 2**20
INVALID = "Invalid HTTP request received."


def http_config(app: Any, drain_s: int, **address: Any) -> uvicorn.Config:
    """Configure uvicorn: this protocol, and neither its logging nor its access log.

    Args:
        app: The ASGI app.
        drain_s: Seconds that shutdown waits for open requests.
        address: Host and port, unless it is given sockets.
    """
    return uvicorn.Config(
        app,
        http=HttpProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        timeout_graceful_shutdown=drain_s,
        **address,
    )


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol with bounds on the head, deaf to offers of another protocol.

    The bounds: the parser hands out a URL or a header only once it is whole and keeps what it has
    of it meanwhile. So this counts what comes in and takes off what comes out as body. What is left
    belongs to the head, to chunk lines or to trailers, whether it is whole or not.

    The offers (`Upgrade: h2c`, `websocket`, `TLS/1.0`): httptools takes for granted that they are
    accepted. It skips the body and stops. The head is then read again without the offer, by a new
    parser, for the old one still holds the length of the body that it skipped.

    Args:
        args: uvicorn's.
        kwargs: uvicorn's.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.url = b""
        self._in_head = True  # or between two requests
        self._overhead = 0  # bytes of this request that are not its body
        self._trailers = self._trailer_bytes = 0
        self._ended = False  # a request, among the bytes that are being parsed
        self._began_behind = False  # this request, behind another among the same bytes
        self._offered = False
        self._refusal: ServeError | None = None
        self._discarded = 0  # bytes since the refusal
        self._hot: HotRoute | None = None
        self._hot_answer: HotAnswer | None = None
        self._hot_body: bytearray | None = None  # of a request that waits for its end

    # From the transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        self._hot = getattr(getattr(self.config.app, "state", None), "hot", None)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left."""
        super().connection_lost(exc)
        if self._hot is not None and isinstance(self.cycle, HotAnswer):
            self._hot.abandon(self.cycle)

    def shutdown(self) -> None:
        """The server ends: answer what is in, then close."""
        if self._hot_body is not None:  # the app knows how to tell a client that time is over
            self._hand_to_app()
        super().shutdown()

    def data_received(self, data: bytes) -> None:
        """Parse what came in."""
        if self._refusal is not None:
            self._discard(len(data))
            return
        self._unset_keepalive_if_required()
        if self._overhead + len(data) <= MAX_HEAD_BYTES:
            self._take(data)
            return
        view, start = memoryview(data), 0
        while start < len(data) and self._refusal is None and not self.transport.is_closing():
            end = self._end_of_piece(data, start)
            if start == end:
                self._refuse(self._too_large())
            else:
                self._take(view[start:end])
                start = end

    def _end_of_piece(self, data: bytes, start: int) -> int:
        """Where to stop and count: in a body of known length not before its end.

        A head is taken alone, so that the body behind it, too, is taken in one piece.
        """
        if self._in_head:
            limit = start + MAX_HEAD_BYTES - self._overhead
            end = data.find(b"\r\n\r\n", start, limit)
            return end + 4 if end >= 0 else limit
        has_length = any(name == b"content-length" for name, _ in self.headers)
        return len(data) if has_length else start + MAX_HEAD_BYTES

    def _take(self, data: bytes | memoryview) -> None:
        self._ended = False
        self._overhead += len(data)
        try:
            self._parse(data)
        except HttpParserError as error:
            if isinstance(error.__context__, ServeError):
                self._refuse(error.__context__)
            else:
                self.logger.warning(INVALID)
                self.send_400_response(INVALID)
            return
        if self._overhead > MAX_HEAD_BYTES:
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
        self._ended = self._began_behind  # the head that begins again began where it did before
        self.parser = HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self.parser.feed_data(b"\r\n".join([*lines, b"", b""]))

    # From the parser

    def on_message_begin(self) -> None:
        """A request begins."""
        self._began_behind = self._ended
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header or, behind a chunked body, a trailer is whole."""
        if not self._in_head:
            # Nobody reads trailers, and uvicorn would add them to the headers of the request.
            self._trailers += 1
            self._trailer_bytes += len(name) + len(value)
            if self._trailers > MAX_FIELDS or self._trailer_bytes > MAX_HEAD_BYTES:
                raise self._too_large()
            return
        if len(self.headers) == MAX_FIELDS:
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
        if self._began_behind:  # at an unknown place among the bytes, so none were counted there
            sizes = [len(name) + len(value) + 4 for name, value in self.headers]
            if len(self.url) + sum(sizes) > MAX_HEAD_BYTES:
                raise self._too_large()
        self._in_head = False
        if self._is_hot():
            self._hot_body = bytearray()
        else:
            super().on_headers_complete()

    def _is_hot(self) -> bool:
        """Whether the request that begins may be answered without the app."""
        return (
            self._hot is not None
            and self.url == PATH.encode()
            and self.parser.get_method() == b"POST"
            and not self._began_behind
            and (self.cycle is None or self.cycle.response_complete)
            and self._hot.takes(self.headers)
        )

    def _answer_hot(self, body: bytes) -> bool:
        """Begin to answer a request that is whole; return False if the app should."""
        assert self._hot is not None, "only a connection with the route waits for its requests"
        if self._hot_answer is None:
            self._hot_answer = HotAnswer(self, self.server_state.default_headers)
        answer = self._hot_answer
        answer.start(
            keep_alive=self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()
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
        super().on_headers_complete()
        if body:
            super().on_body(bytes(body))

    def write_answer(self, answer: HotAnswer, data: bytes) -> None:
        """Write the whole response, and go on to the next request."""
        self.transport.write(data)
        if not answer.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def on_chunk_header(self) -> None:
        """A chunk begins."""
        self._overhead -= CHUNK_BYTES

    def on_body(self, body: bytes) -> None:
        """A part of the body came."""
        self._overhead -= len(body)
        if self._hot_body is not None:
            self._hot_body += body
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole; what follows belongs to the next."""
        if self._offered:  # it is not: the parser skipped the body
            return
        self._in_head = self._ended = True
        self._overhead = self._trailers = self._trailer_bytes = 0
        if self._hot_body is not None:
            if self._answer_hot(bytes(self._hot_body)):
                self._hot_body = None
                return
            self._hand_to_app()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """An answer is out: the next request's turn, or the refusal's."""
        was_last = not self.pipeline
        super().on_response_complete()
        if was_last and self._refusal is not None:
            self._send_refusal(self._refusal)

    # Refusing

    def _too_large(self) -> ServeError:
        if self._in_head and len(self.url) > MAX_HEAD_BYTES // 2:
            return UrlTooLong(
                f"the URL is too long: URL and headers may have {MAX_HEAD_BYTES} bytes; send data "
                f"in the body"
            )
        return HeadTooLarge(
            f"the headers are too large: {MAX_FIELDS} fields and {MAX_HEAD_BYTES} bytes are the "
            f"most, chunk extensions and trailers included; send fewer"
        )

    def _refuse(self, refusal: ServeError) -> None:
        """Answer no more than what came before; once that is out, refuse and close."""
        self.logger.warning("Refused a request: %s", refusal.detail)
        self._refusal = refusal
        busy = self.cycle is not None and not self.cycle.response_complete
        if not self._in_head:  # the latest request is the one to refuse, in the midst of its body
            if self.pipeline and self.pipeline[0][0] is self.cycle:
                self.pipeline.popleft()  # it waits for its turn; an earlier one is being answered
            elif self.cycle.response_started:
                self.transport.close()  # it has its answer, there can be no second
                return
            else:
                busy = False
                self.cycle.disconnected = True
                self.cycle.message_event.set()
        if not busy:
            self._send_refusal(refusal)

    def _send_refusal(self, refusal: ServeError) -> None:
        """Send it, then take what is still on its way for a while.

        Closing at once would reset the connection, and the client might never read the answer.
        """
        if self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        self.transport.write(self._answer(refusal))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self.loop.call_later(LINGER_S, self.transport.close)

    def _discard(self, size: int) -> None:
        self._discarded += size
        if self._discarded > LINGER_BYTES:
            self.transport.abort()

    def _answer(self, refusal: ServeError) -> bytes:
        request_id = os.urandom(16).hex()
        answer = problem_response(
            refusal.status, refusal.code, refusal.detail, request_id, refusal.headers
        )
        fields = [
            *self.server_state.default_headers,
            *answer.raw_headers,
            (b"x-request-id", request_id.encode()),
            (b"connection", b"close"),
        ]
        lines = b"".join([b"%s: %s\r\n" % field for field in fields])
        return STATUS_LINE[refusal.status] + lines + b"\r\n" + bytes(answer.body)
