"""The life of a client's connection: what it waits for, how it is refused, and how it ends."""

import asyncio
import math
import time
from enum import Enum
from typing import Any

import pydantic_core
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from server.errors import HeadTooLarge, RequestTimeout, ServeError
from server.hot_route import REQUEST_ID, HotRoute
from server.intake import Intake
from server.prediction_paths import route_label
from server.problems import PROBLEM_TYPE, problem
from server.request_context import RequestContext
from server.request_recorder import RequestRecorder

GRACE_S = 0.1  # for a request that was sent before the server began to end
LINGER_S, LINGER_BYTES = 2.0, 2**20
WRITE_BYTES = 16 * 1024  # of answers that a client has not taken, before it gets no more
TURN_BYTES = 64 * 1024  # of a connection, in one turn of the loop
DISCARD_S = 0.005  # between two reads of what nobody wants


class Phase(Enum):
    """What a connection waits for."""

    FIRST_BYTE = "the first byte"
    HEAD = "the rest of a head"
    BODY = "the rest of a body"
    ANSWER = "the server"
    TAKING = "the client to take an answer"
    IDLE = "the next request"
    ENDING = "the client to read why it was refused"


class _Refused:
    """Stands for a request that was refused while its body is still coming in."""

    message_event = asyncio.Event()
    response_started = response_complete = True
    disconnected = keep_alive = more_body = False


REFUSED: Any = _Refused()


class HttpConnection(HttpToolsProtocol):
    """A connection within the bounds of an `Intake`; `HttpProtocol` reads its requests.

    It has one clock, for whatever it waits for. When that has run out, or when others need the
    room, it is refused or closed. After a refusal it takes what is still on its way for a while.

    Args:
        args: uvicorn's.
        kwargs: uvicorn's.

    Attributes:
        due_s: As in `server.intake.Connection`.
        heard_s: As there.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        state = getattr(self.config.app, "state", None)
        self._hot: HotRoute | None = getattr(state, "hot", None)
        self._intake: Intake = getattr(state, "intake", None) or Intake()
        self._recorder: RequestRecorder | None = getattr(state, "recorder", None)
        self.url = b""
        self.due_s, self.heard_s = math.inf, 0.0
        self._phase = Phase.ANSWER
        self._whole = True  # the latest request; also before the first one
        self._is_given_away = False  # the latest request: the app answers it, or it was refused
        self._body_left: int | None = 0  # bytes; of a chunked body unknown
        self._held = 0  # bytes of this request that count as held
        self._untaken = 0  # bytes of answers, when last looked at
        self._ends = False  # with the next answer, or soon if no request comes
        self._refusal: ServeError | None = None
        self._discardable = LINGER_BYTES  # after a refusal

    # From the transport

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left."""
        super().connection_lost(exc)
        self.due_s = math.inf
        self._release()
        self._intake.leave(self)

    def shutdown(self) -> None:
        """The server ends: answer what is in, then close."""
        if self._refusal is not None:
            self._wait(Phase.ENDING, GRACE_S)
        elif self.cycle is None or self.cycle.response_complete:
            self._ends = True  # once a request that may be on its way has been answered
            self._wait(self._phase, GRACE_S)
        else:
            super().shutdown()

    def pause_writing(self) -> None:
        """The client takes no more of an answer for now."""
        super().pause_writing()
        self._await_taking()

    # Clocks

    def _wait(self, phase: Phase, limit_s: float = math.inf) -> None:
        """Wait for something, for a time."""
        raise NotImplementedError

    def _release(self) -> None:
        """Give back the room of the request."""
        raise NotImplementedError

    @property
    def receiving_bytes(self) -> int:
        """Bytes of a body that is not whole."""
        return self._held if self._phase is Phase.BODY else 0

    def _await_taking(self) -> None:
        self._untaken = self.transport.get_write_buffer_size()
        self._wait(Phase.TAKING, self._intake.limits.keep_alive_s)

    def time_out(self) -> None:
        """Act on `due_s`, which has passed."""
        limits, phase = self._intake.limits, self._phase
        if self._ends and (self.cycle is None or self.cycle.response_complete):
            self.transport.close()
            self._wait(Phase.ENDING, LINGER_S)
        elif phase is Phase.FIRST_BYTE:
            self._refuse_late("no request came", limits.first_byte_s, "first_byte_timeout")
        elif phase is Phase.HEAD:
            self._refuse_late("the head is not whole", limits.head_s, "head_timeout")
        elif phase is Phase.BODY:
            self._refuse_late("the body is not whole", limits.body_s, "body_timeout")
        elif phase is Phase.TAKING and self._untaken > self.transport.get_write_buffer_size() > 0:
            self._await_taking()
        else:
            self.give_way()

    def give_way(self) -> None:
        """Close, as others need the room or the client has been idle for too long."""
        if self._phase is Phase.BODY:
            error = RequestTimeout("the body has stopped coming, and others need the room")
            error.reason = "stalled"
            self._refuse(error)
            return
        if self.transport.get_write_buffer_size():
            if self._phase is not Phase.ENDING:
                sentence = "a client took nothing of its answer"
                self._intake.refusals.record("answer_not_taken", sentence)
            self.transport.abort()
        else:
            self.transport.close()
        self._wait(Phase.ENDING, LINGER_S)

    def _refuse_late(self, what: str, limit_s: float, reason: str) -> None:
        error = RequestTimeout(f"{what} after {limit_s:g} s; send it at once")
        error.reason = reason
        self._refuse(error)

    # Refusing

    def _too_large(self) -> ServeError:
        limits = self._intake.limits
        return HeadTooLarge(
            f"the headers are too large: {limits.max_fields} fields and {limits.max_head} bytes "
            f"are the most, chunk extensions and trailers included; send fewer"
        )

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

    def _count(self, error: ServeError) -> None:
        refusals = self._intake.refusals
        refusals.record_error(error)
        path = "" if self._whole else self.url.partition(b"?")[0].decode("latin-1")
        refusals.counts.observe_request(route_label(path), error.status)

    def _refuse(self, refusal: ServeError) -> None:
        """Answer no more, and close."""
        self._refusal = refusal
        if self._whole or not self._is_given_away:
            self._count(refusal)
            self._send_refusal(refusal)
        else:
            self._intake.refusals.record_error(refusal)
            if self.cycle.response_started:
                self.transport.close()  # it has its answer, there can be no second
            else:
                self.cycle.disconnected = True
                self.cycle.message_event.set()
                self._send_refusal(refusal)
        self._release()
        self._wait(Phase.ENDING, LINGER_S)

    def _send_refusal(self, refusal: ServeError) -> None:
        """Send it, then take what is still on its way for a while.

        Closing at once would reset the connection, and the client might never read the answer.
        """
        if self.transport.is_closing():
            return
        self.transport.write(self._answer(refusal, keep_alive=False))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.held = False  # type: ignore[attr-defined]
        self.flow.resume_reading()

    def _discard(self, size: int) -> None:
        self._discardable -= size
        if self._discardable < 0:
            self.transport.abort()
        elif size >= TURN_BYTES:  # it costs as much as a body that is wanted
            self.flow.pause_reading()
            self.loop.call_later(DISCARD_S, self._discard_more)

    def _discard_more(self) -> None:
        if not self.transport.is_closing():
            self.flow.resume_reading()

    def _record_refusal(self, refusal: ServeError, request_id: str) -> None:
        recorder = self._recorder
        if recorder is None or not recorder.is_on or self._whole:
            return  # between two requests there is none to record
        path, method = self.url.partition(b"?")[0].decode("latin-1"), self.parser.get_method()
        now_s = time.perf_counter()
        began_s = now_s - (self.loop.time() - self.heard_s)
        request = RequestContext(request_id, None, method.decode("latin-1"), path, began_s)
        request.status = refusal.status
        recorder.end(request)

    def _answer(self, refusal: ServeError, *, keep_alive: bool) -> bytes:
        request_id = ""
        for name, value in () if self._whole else self.headers:
            if name == b"x-request-id":
                request_id = value.decode("latin-1")
        if not REQUEST_ID.fullmatch(request_id):
            request_id = self._intake.make_id()
        self._record_refusal(refusal, request_id)
        body = pydantic_core.to_json(
            problem(refusal.status, refusal.code, refusal.detail, request_id)
        )
        fields = {
            **refusal.headers,
            "content-type": PROBLEM_TYPE,
            "content-length": len(body),
            "x-request-id": request_id,
            "server-timing": f"total;dur={(self.loop.time() - self.heard_s) * 1e3:.3f}",
        }
        if not keep_alive:
            fields["connection"] = "close"
        given = [*self.server_state.default_headers]
        if self._hot is not None and not self._whole:
            given += self._hot.cors_headers(self.url, self.headers)
        default = b"".join([b"%s: %s\r\n" % field for field in given])
        lines = "".join([f"{name.lower()}: {value}\r\n" for name, value in fields.items()])
        return b"".join([STATUS_LINE[refusal.status], default, lines.encode(), b"\r\n", body])
