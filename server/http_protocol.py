"""A connection's HTTP/1.1: one request at a time, bounded in bytes and in seconds.

uvicorn leaves bounds to a proxy in front of it. Without one, a client that sends without end, too
slowly, or without reading its answers holds memory and connections for as long as it likes, and a
request that offers another protocol loses its body.
"""

from typing import Any

import uvicorn

from server.errors import BodyTooLarge, MethodNotAllowed, ServeError
from server.hot_route import PATH, HotAnswer, HotRoute
from server.http_connection import LINGER_BYTES, REFUSED
from server.http_reader import HttpReader
from server.intake import SMALL_BODY_BYTES


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


class HttpProtocol(HttpReader):
    """uvicorn's protocol, within the bounds of an `Intake`.

    A prediction goes to the hot route if that takes it, and everything else to the app. What the
    head tells is enough to refuse a request for: its body is then not read.

    Args:
        args: uvicorn's.
        kwargs: uvicorn's.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._hot: HotRoute | None = getattr(getattr(self.config.app, "state", None), "hot", None)
        self._hot_answer: HotAnswer | None = None
        self._hot_body: bytearray | None = None  # of a request that waits for its end

    # From the transport

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

    # From the parser

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

    def _turn_away(self, error: ServeError) -> None:
        """Refuse a request by its head; a small body that follows is skipped.

        A client that waits for leave to send its body sends none now, and the next request would
        be taken for it. So that one is closed, as is one with a large body.
        """
        length = self._body_left
        stays = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()
        if not stays or self.expect_100_continue or length is None or length > LINGER_BYTES:
            if length is not None and length <= self._intake.limits.max_body:
                self._discardable += length
            raise error
        self._count(error)
        self.cycle, self._is_given_away = REFUSED, True
        self.transport.write(self._answer(error, keep_alive=True))

    def _refuse(self, refusal: ServeError) -> None:
        self._hot_body = None
        super()._refuse(refusal)

    def _is_prediction(self) -> bool:
        path = self.url.partition(b"?")[0]
        return path == PATH.encode() and self.parser.get_method() == b"POST"

    def _is_hot(self) -> bool:
        """Whether the request that begins may be answered without the app."""
        return (
            self._hot is not None
            and self.url == PATH.encode()
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

    def write_answer(self, answer: HotAnswer, data: bytes) -> None:
        """Write the whole response, and go on to the next request."""
        self.transport.write(data)
        if not answer.keep_alive:
            self.transport.close()
        self.on_response_complete()

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
        self._hold(size)

    def _hold(self, size: int) -> None:
        intake = self._intake
        self._held += size
        intake.held_bytes += size
        most = intake.most_large if self._held > SMALL_BODY_BYTES else intake.limits.max_held
        if intake.held_bytes > most and not intake.find_room(0, most):
            raise intake.bytes_full(most)

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
