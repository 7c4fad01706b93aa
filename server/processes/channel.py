"""A connection between two processes that carries messages and file descriptors."""

import array
import asyncio
import itertools
import logging
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from server.processes.wire import BadMessage, Message, MessageReader, encode

log = logging.getLogger(__name__)

READ_BYTES = 256 * 1024
COPIED_BYTES = 32 * 1024  # so that a small array keeps no whole buffer
MOST_PARTS = os.sysconf("SC_IOV_MAX")  # of one system call
MOST_FDS = 64  # of one message; Linux takes 253
FDS = "fds"  # the field that says how many descriptors come with a message
ANCILLARY_BYTES = socket.CMSG_SPACE(MOST_FDS * array.array("i").itemsize)
OnMessage = Callable[[Message, list[int]], None]
OnClosed = Callable[[], None]


class _Attached(NamedTuple):
    """Descriptors that leave with the byte at this position of all that is sent."""

    position: int
    fds: list[int]


class Channel:
    """One end of a connected pair of Unix stream sockets, read by one event loop.

    A message is written to the socket at once, by the thread that sends it. What the socket does
    not take is kept in memory and written by the loop when the other end has read; `pending_bytes`
    tells how much that is. Arrays of a message are not copied: leave them as they are until then.

    The descriptors of a message are sent with its first byte, so that they are never later than
    its last one. The receiver gives them out by the number in each message's field `fds`.

    Args:
        sock: The socket; the channel owns it from now on and closes it.
        loop: The loop that reads; the channel is closed before it.
        on_message: Called in the loop with each message and the descriptors that came with it,
            which are its own to close. What it raises is logged, and the next message follows.
        on_closed: Called in the loop once, when the other end is gone or sends what is no message.
            Not called after `close`.
    """

    def __init__(
        self,
        sock: socket.socket,
        loop: asyncio.AbstractEventLoop,
        on_message: OnMessage,
        on_closed: OnClosed,
    ) -> None:
        sock.setblocking(False)
        self._socket, self._loop = sock, loop
        self._on_message, self._on_closed = on_message, on_closed
        self._reader = MessageReader()
        self._buffer = _new_buffer()
        self._received: deque[int] = deque()  # descriptors whose message is not whole
        self._is_reading = False
        self._lock = threading.Lock()  # guards all below, and the order of what is sent
        self._unsent: deque[bytes | memoryview] = deque()
        self._attached: deque[_Attached] = deque()
        self._queued_bytes = self._sent_bytes = 0  # of the whole life of the channel
        self._is_open = True  # takes messages
        self._is_closed = False
        self.resume_reading()

    @property
    def pending_bytes(self) -> int:
        """Bytes that wait in memory until the other end reads."""
        sent = self._sent_bytes  # read first, as another thread may send in between
        return self._queued_bytes - sent

    def send(self, message: Message, fds: Sequence[int] = ()) -> bool:
        """Send a message without waiting; any thread may call. Return False once it is closed.

        Args:
            message: The message; it has no field `fds` of its own.
            fds: Descriptors for the other end; the caller keeps its own and may close them.

        Raises:
            BadMessage: If the message cannot be encoded.
            ValueError: If it has a field `fds`, or there are more than `MOST_FDS`.
            OSError: If one of the descriptors is not open.
        """
        parts = encode(_counting(message, len(fds)))
        with self._lock:
            if not self._is_open:
                return False
            if fds:
                self._attached.append(_Attached(self._queued_bytes, _copies(fds)))
            self._queued_bytes += sum(map(len, parts))
            is_first = not self._unsent
            self._unsent.extend(parts)
            if is_first:
                self._write_now()
                if self._unsent:
                    self._loop.call_soon_threadsafe(self._write_later)
        return True

    def pause_reading(self) -> None:
        """Read no more, until `resume_reading`. What has been read already is still handed over.

        The other end's pending bytes grow meanwhile. A failed `send` resumes reading, as only
        reading finds out what the other end has sent before it was gone.
        """
        if self._is_reading:
            self._is_reading = False
            self._loop.remove_reader(self._socket)

    def resume_reading(self) -> None:
        """Read again; nothing happens if the channel reads already or is closed."""
        if not self._is_reading and not self._is_closed:
            self._is_reading = True
            self._loop.add_reader(self._socket, self._read)

    def close(self) -> None:
        """Close the connection, in the loop's thread; pending bytes are dropped."""
        with self._lock:
            if self._is_closed:
                return
            self._is_open, self._is_closed = False, True
            self._drop_unsent()
            self._loop.remove_writer(self._socket)
            self.pause_reading()
            self._socket.close()
        _close_all(self._received)

    def _write_now(self) -> None:
        """Write until all is out or the socket takes no more; the caller holds the lock."""
        while self._unsent:
            parts, fds = self._next_parts()
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            try:
                sent = self._socket.sendmsg(parts, rights, socket.MSG_NOSIGNAL)
            except (BlockingIOError, InterruptedError):
                return
            except (BrokenPipeError, ConnectionResetError):
                self._stop_writing(self.resume_reading)
                return
            except OSError:
                log.exception("a connection between processes fails and is closed")
                self._stop_writing(self._end)
                return
            if fds:
                _close_all(self._attached.popleft().fds)
            self._drop_sent(sent)

    def _next_parts(self) -> tuple[list[bytes | memoryview], list[int]]:
        """What one system call sends: descriptors go with the first byte, or in a later call."""
        if not self._attached:
            return list(itertools.islice(self._unsent, MOST_PARTS)), []
        first = self._attached[0]
        if first.position == self._sent_bytes:
            return [self._unsent[0]], first.fds
        parts, position = [], self._sent_bytes
        for part in itertools.islice(self._unsent, MOST_PARTS):
            if position == first.position:
                break
            parts.append(part)
            position += len(part)
        return parts, []

    def _drop_sent(self, sent: int) -> None:
        self._sent_bytes += sent
        if self._sent_bytes == self._queued_bytes:
            self._unsent.clear()
            return
        while sent >= len(self._unsent[0]):
            sent -= len(self._unsent.popleft())
        if sent:
            self._unsent[0] = memoryview(self._unsent[0])[sent:]

    def _stop_writing(self, then: Callable[[], None]) -> None:
        self._is_open = False
        self._drop_unsent()
        self._loop.call_soon_threadsafe(then)

    def _drop_unsent(self) -> None:
        self._unsent.clear()
        self._sent_bytes = self._queued_bytes
        while self._attached:
            _close_all(self._attached.popleft().fds)

    def _write_later(self) -> None:
        with self._lock:
            if self._unsent:
                self._loop.add_writer(self._socket, self._write)

    def _write(self) -> None:
        with self._lock:
            self._write_now()
            if not self._unsent and not self._is_closed:
                self._loop.remove_writer(self._socket)

    def _read(self) -> None:
        try:
            messages = self._receive()
            if messages is None:
                self._end()
                return
            for message in messages:
                if self._is_closed:
                    return
                self._hand_over(message)
        except BadMessage as error:
            log.error("a connection between processes is closed: %s", error)
            self._end()
            return
        if self._received and self._reader.is_between_messages:
            log.warning("%d descriptors came with no message and are closed", len(self._received))
            _close_all(self._received)

    def _receive(self) -> list[Message] | None:
        """Read once; return the messages that are whole now, or None if the other end is gone."""
        space = self._reader.space  # of the rest of a message that came in pieces
        place = self._buffer if space is None else space
        try:
            count, ancillary, flags, _ = self._socket.recvmsg_into(
                [place], ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
            )
        except (BlockingIOError, InterruptedError):
            return []
        except ConnectionResetError:
            return None
        except OSError:
            log.exception("a connection between processes fails and is closed")
            return None
        for _, _, content in ancillary:
            self._received.extend(array.array("i", content))
        if flags & socket.MSG_CTRUNC:
            raise BadMessage(
                f"descriptors are lost: more than {MOST_FDS} came, or too many files are open"
            )
        if not count:
            return None
        return self._reader.fill(count) if space is not None else self._feed(count)

    def _feed(self, count: int) -> list[Message]:
        """Hand over what was read: a copy if it is small, else the buffer itself."""
        data = self._buffer[:count]
        if count <= COPIED_BYTES:
            return self._reader.feed(bytes(data))
        self._buffer = _new_buffer()
        return self._reader.feed(data.toreadonly())

    def _hand_over(self, message: Message) -> None:
        count = message.fields.get(FDS, 0)
        if type(count) is not int or not 0 <= count <= len(self._received):
            raise BadMessage(
                f"a message names {count!r} descriptors, but has {len(self._received)}"
            )
        fds = [self._received.popleft() for _ in range(count)]
        try:
            self._on_message(message, fds)
        except Exception:
            log.exception("a message %r could not be handled", message.kind)

    def _end(self) -> None:
        if not self._is_closed:
            self.close()
            self._on_closed()


def _new_buffer() -> memoryview:
    """Memory to read into, of one size, which the allocator hands out again without page faults."""
    return np.empty(READ_BYTES, np.uint8).data


def _counting(message: Message, fds: int) -> Message:
    """The message with the number of its descriptors."""
    if FDS in message.fields:
        raise ValueError(f"a message {message.kind!r} has a field {FDS!r}, which is the channel's")
    if fds > MOST_FDS:
        raise ValueError(f"a message takes at most {MOST_FDS} descriptors, not {fds}")
    return message._replace(fields={**message.fields, FDS: fds}) if fds else message


def _copies(fds: Sequence[int]) -> list[int]:
    copies: list[int] = []
    try:
        for fd in fds:
            copies.append(os.dup(fd))
    except OSError:
        _close_all(copies)
        raise
    return copies


def _close_all(fds: list[int] | deque[int]) -> None:
    while fds:
        os.close(fds.pop())
