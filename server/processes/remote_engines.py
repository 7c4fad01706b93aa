"""A front-end's side of the engines: spreads requests over them, and takes their results."""

import asyncio
import itertools
import socket
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np

from server.dispatch import deliver_exits
from server.engine.deadlines import deadline_error
from server.engine.request import InferenceRequest, Shape
from server.errors import INTERNAL_DETAIL, InferenceFailed, NotReady, ServeError
from server.processes.channel import Channel
from server.processes.messages import pack_requests, unpack_exits, unpack_results
from server.processes.timings import unpack_timings
from server.processes.wire import Message

Deliver = Callable[[list[InferenceRequest], float], None]
NO_ENGINE = "no engine is ready; try again"
DIED_TWICE = "the engine that ran this request has died, and so did the one before; try again"


class Sent(NamedTuple):
    """A request that an engine has.

    Attributes:
        client: Whose it is.
        request: The request.
        is_retry: Whether another engine died with it.
    """

    client: "RemoteClient"
    request: InferenceRequest
    is_retry: bool


class EngineLink:
    """One engine, as this front-end sees it.

    Attributes:
        index: Which engine it is.
        channel: The connection.
        sent: Requests that it has, by number.
        accepts: Whether it may be given requests.
        others: Requests of other front-ends that it held when it last sent results.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self.channel: Channel | None = None
        self.sent: dict[int, Sent] = {}
        self.accepts = True
        self.others = 0

    @property
    def load(self) -> int:
        """Requests that would go before another one."""
        return len(self.sent) + self.others


class RemoteEngines:
    """All engines of the server; all methods belong to the event loop's thread.

    Args:
        loop: Sends and receives.
        clock: Seconds, monotonic; shared by all processes of the host.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float]) -> None:
        self.loop = loop
        self.clock = clock
        self._links: dict[int, EngineLink] = {}
        self._numbers = itertools.count(1)
        self._outbox: list[Sent] = []
        self.delivery: tuple[float, float] | None = None

    def client(self, model: int, deliver: Deliver) -> "RemoteClient":
        """Return the client of one model.

        Args:
            model: Its index.
            deliver: Called with requests that have their results, and when these were sent.
        """
        return RemoteClient(self, model, deliver)

    def connect(self, index: int, sock: socket.socket) -> None:
        """Send requests to an engine from now on."""
        link = EngineLink(index)
        link.channel = Channel(
            sock, self.loop, lambda message, fds: self._receive(link, message), lambda: None
        )
        self._links[index] = link

    def set_accepting(self, index: int, accepts: bool) -> None:
        """Let an engine have requests or not; it keeps what it has."""
        if index in self._links:
            self._links[index].accepts = accepts

    def bury(self, index: int, executing: Collection[int]) -> None:
        """Give up an engine that has died.

        Args:
            index: Which one.
            executing: Numbers of the requests that it was executing; one of them may be the cause
                of its death, so they fail. The others are sent to another engine, once.
        """
        link = self._links.pop(index, None)
        if link is None:
            return
        if link.channel is not None:
            link.channel.close()
        for number, sent in link.sent.items():
            if number in executing:
                sent.client.fail(sent.request, InferenceFailed(INTERNAL_DETAIL))
            elif sent.is_retry:
                sent.client.fail(sent.request, NotReady(DIED_TWICE, {"Retry-After": "1"}))
            else:
                self.send(Sent(sent.client, sent.request, is_retry=True))

    def send(self, sent: Sent) -> None:
        """Send a request in this turn of the loop, together with all others of the turn."""
        if not self._outbox:
            self.loop.call_soon(self._flush)
        self._outbox.append(sent)

    def cancel(self, requests: Collection[InferenceRequest]) -> None:
        """Drop requests, wherever they are."""
        dropped = set(map(id, requests))
        self._outbox = [sent for sent in self._outbox if id(sent.request) not in dropped]
        for link in self._links.values():
            numbers = [n for n, sent in link.sent.items() if id(sent.request) in dropped]
            for number in numbers:
                del link.sent[number]
            if numbers and link.channel is not None:
                link.channel.send(Message("cancel", {}, (np.array(numbers, np.int64),)))

    def _flush(self) -> None:
        """Send what is in the outbox: one message for each engine, model and shape."""
        outbox, self._outbox = self._outbox, []
        groups: dict[tuple[EngineLink, RemoteClient, Shape], list[int]] = defaultdict(list)
        for sent in outbox:
            request = sent.request
            if sent.is_retry and request.deadline_s is not None:
                if self.clock() >= request.deadline_s:
                    sent.client.fail(request, deadline_error())
                    continue
            link = self._least_loaded()
            if link is None:
                sent.client.fail(request, NotReady(NO_ENGINE, {"Retry-After": "1"}))
                continue
            number = next(self._numbers)
            link.sent[number] = sent
            shape = tuple([array.shape[1:] for array in request.state])
            groups[link, sent.client, shape].append(number)
        for (link, client, _), numbers in groups.items():
            requests = [link.sent[number].request for number in numbers]
            message = pack_requests(client.model, numbers, requests, self.delivery)
            assert link.channel is not None, "links are connected"
            link.channel.send(message)

    def _least_loaded(self) -> EngineLink | None:
        able = [link for link in self._links.values() if link.accepts]
        return min(able, key=lambda link: link.load) if able else None

    def _receive(self, link: EngineLink, message: Message) -> None:
        """Take the results of a batch, or what its streamed requests show at an exit."""
        if message.kind == "exits":
            passed = [(link.sent[n].request, e) for n, e in unpack_exits(message) if n in link.sent]
            deliver_exits(passed)
            return
        finished: dict[RemoteClient, list[InferenceRequest]] = defaultdict(list)
        for number, timings in unpack_timings(message):
            if (sent := link.sent.get(number)) is not None:
                sent.request.timings = timings
        for number, result in unpack_results(message):
            sent = link.sent.pop(number, None)
            if sent is None:  # its client has left
                continue
            sent.request.result = result
            finished[sent.client].append(sent.request)
        link.others = max(message.fields["rows"] - len(link.sent), 0)
        for client, requests in finished.items():
            client.deliver(requests, message.fields["sent_s"])


class RemoteClient:
    """Sends one model's requests to the engines; an `EngineClient`.

    Args:
        engines: All engines.
        model: The model's index.
        deliver: Called with requests that have their results.
    """

    def __init__(self, engines: RemoteEngines, model: int, deliver: Deliver) -> None:
        self.model = model
        self.deliver = deliver
        self.cancelled = 0
        self._engines = engines
        self._thread = threading.get_ident()
        self._lock = threading.Lock()  # guards `cancelled`

    def submit(self, requests: Sequence[InferenceRequest]) -> None:
        """Send requests to engines; any thread may call."""
        if threading.get_ident() == self._thread:
            self._send(requests)
        else:
            self._engines.loop.call_soon_threadsafe(self._send, requests)

    def cancel(self, requests: Sequence[InferenceRequest]) -> None:
        """Drop requests that nobody waits for any more."""
        for request in requests:
            request.cancelled = True
        self._engines.cancel(requests)

    def note_cancelled(self, count: int) -> None:
        """Count requests whose clients left before they were submitted; any thread may call."""
        with self._lock:
            self.cancelled += count

    def note_delivery(self, now_s: float, took_s: float) -> None:
        """Note how long results took to arrive; the next requests tell the engines."""
        self._engines.delivery = now_s, took_s

    def take_cancelled(self) -> int:
        """Return what `note_cancelled` counted since the last call."""
        with self._lock:
            taken, self.cancelled = self.cancelled, 0
        return taken

    def fail(self, request: InferenceRequest, error: ServeError) -> None:
        """Answer a request with an error."""
        request.result = error
        self.deliver([request], self._engines.clock())

    def _send(self, requests: Sequence[InferenceRequest]) -> None:
        for request in requests:
            if request.cancelled:
                self.note_cancelled(1)
            else:
                self._engines.send(Sent(self, request, is_retry=False))
