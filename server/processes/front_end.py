"""The front-end process: HTTP, limits and decoding; answers from engines, operators by control."""

import asyncio
import itertools
import logging
import socket
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from starlette.datastructures import State
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from server.app import answer_prediction
from server.bundle_folders import open_source
from server.errors import NotReady
from server.forwarded import proxy_options
from server.front import Front, FrontModel
from server.gate import main_gate, without_root
from server.hot_route import HotRoute
from server.http_protocol import http_config
from server.intake import Intake
from server.lifespan import (
    HEARTBEAT_S,
    QUIET_BEAT_S,
    last_call_end_s,
    spare_the_collector,
    until_next_s,
)
from server.listener import Listener
from server.metrics import REPOSITORY
from server.middleware import RequestMiddleware
from server.prediction_paths import takes_samples
from server.processes.channel import Channel
from server.processes.front_counts import FrontCounts, SpanBuffer
from server.processes.messages import pack_answers, unpack_keys, unpack_source, unpack_terms
from server.processes.proxy import pack_request, unpack_response
from server.processes.remote_engines import RemoteClient, RemoteEngines
from server.processes.wire import Message, beat
from server.processes.zygote import ChildSetup
from server.recording import make_recorder
from server.refusals import RefusalLog
from server.reports import EntryTerms
from server.request_recorder import RequestRecorder
from server.settings import Settings, limits_of, share_of
from server.shared_turn import SharedTurn
from server.shortage import shortage_of
from server.tls import tls_options
from server.tracing import Sampler
from server.unloading import drain, release_memory

log = logging.getLogger(__name__)

REPORT_S = 0.02  # at most, from an answer to control's knowing of it
CONTROL_S = 30.0  # for control to answer an operator's request
CHANGE_S = 900.0  # for control to load or unload a model
NO_CONTROL = "the control process does not answer; try again"


class ServedModel(NamedTuple):
    """A model, and the client that sends its requests to the engines."""

    model: FrontModel
    client: RemoteClient


class FrontEnd:
    """One front-end; an ASGI app.

    Args:
        front: Its models and limits.
        counts: What it counts.
        control: The connection to the control process.
        settings: The server's.
        clock: Seconds, monotonic; shared by all processes of the host.
        recorder: Follows requests; default: one that keeps nothing of them.
        spans: What it has recorded for control.

    Attributes:
        state: What the routes share.
        server: Runs this app; set before it starts.
    """

    server: Listener

    def __init__(
        self,
        front: Front,
        counts: FrontCounts,
        control: socket.socket,
        settings: Settings,
        clock: Callable[[], float] = time.perf_counter,
        recorder: RequestRecorder | None = None,
        spans: SpanBuffer | None = None,
    ) -> None:
        self._gate = main_gate(settings)
        recorder, self._spans = recorder or RequestRecorder(), spans or SpanBuffer()
        refusals = RefusalLog(counts)
        self.state = State(
            {
                "front": front,
                "refusals": refusals,
                "hot": HotRoute(front, refusals, clock, self._gate, recorder),
                "intake": Intake(limits_of(settings), refusals),
                "recorder": recorder,
            }
        )
        self._front, self._counts, self._clock = front, counts, clock
        self._control_socket = control
        self._replies: dict[int, asyncio.Future[Message]] = {}
        self._numbers = itertools.count(1)
        self._served: dict[int, ServedModel] = {}  # by number
        self._terms: dict[int, EntryTerms] = {}
        self._orders: asyncio.Queue[Message] = asyncio.Queue()  # about models, one after another
        max_bytes = settings.max_body_mib * 2**20
        around = (refusals, max_bytes, clock, self._gate, recorder)
        self._predict = RequestMiddleware(answer_prediction, *around)
        self._ask_control = RequestMiddleware(self._forward, *around)
        self._report_due = False
        self._had_news = True
        self._started = asyncio.Event()  # control has told what a front-end must know
        self._acts: dict[str, Callable[[Message, list[int]], None]] = {
            "terms": self._set_terms,
            "engine": self._connect,
            "keys": self._set_keys,
            **dict.fromkeys(("model", "publish", "withdraw", "start"), self._take_order),
            "accepting": self._set_accepting,
            "died": self._bury,
            "not_ready": self._set_not_ready,
            "flush": self._flush,
            "reply": self._resolve,
            "deregister": lambda message, fds: self._close_connections(),
            "drain": lambda message, fds: self.drain(),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or start and stop with the server."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        scope["app"] = self
        without_root(scope, self._gate.root_path)
        if scope["method"] == "POST" and takes_samples(scope["path"]):
            await self._predict(scope, receive, send)
        else:
            await self._ask_control(scope, receive, send)

    def drain(self) -> None:
        """Answer what has come and what comes within a moment, then end."""
        self._close_connections()
        self._end_after_last_call(time.monotonic())

    def _end_after_last_call(self, began_s: float) -> None:
        intake: Intake = self.state.intake
        left_s = last_call_end_s(began_s, intake.newest_s) - time.monotonic()
        if left_s <= 0:
            self.server.end()
        else:
            asyncio.get_running_loop().call_later(left_s, self._end_after_last_call, began_s)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        loop = asyncio.get_running_loop()
        self._engines = RemoteEngines(loop, self._clock)
        self._control = Channel(self._control_socket, loop, self._obey, self._lose_control)
        spare_the_collector()
        orders = asyncio.create_task(self._follow_orders())
        await self._started.wait()
        heartbeat = asyncio.create_task(self._beat())
        self._control.send(Message("ready"))
        await send({"type": "lifespan.startup.complete"})
        await receive()
        heartbeat.cancel()
        orders.cancel()
        self.state.hot.close()
        self._report()
        await asyncio.to_thread(self._front.stop)
        await send({"type": "lifespan.shutdown.complete"})

    async def _beat(self) -> None:
        period_s = HEARTBEAT_S
        while True:
            now_s = self._clock()
            delay_s = until_next_s(period_s, now_s)
            await asyncio.sleep(delay_s)
            self._counts.loop_lag_s = max(self._clock() - now_s - delay_s, 0.0)
            period_s = HEARTBEAT_S if self._report() else QUIET_BEAT_S
            await self.server.on_tick(0)

    def _lose_control(self) -> None:
        """Control watches over all: without it nothing holds the budget, and nothing restarts."""
        log.error("the control process is gone; this front-end ends")
        self.drain()

    def _obey(self, message: Message, fds: list[int]) -> None:
        self._acts[message.kind](message, fds)

    def _take_order(self, message: Message, fds: list[int]) -> None:
        self._orders.put_nowait(message)

    async def _follow_orders(self) -> None:
        """Do what control says about models; ends by cancellation."""
        acts = {"model": self._prepare, "publish": self._publish, "withdraw": self._withdraw}
        while True:
            message = await self._orders.get()
            if message.kind == "start":
                self._started.set()
            else:
                await acts[message.kind](message)

    async def _prepare(self, message: Message) -> None:
        """Get ready to answer for a model; no request reaches it yet."""
        number, fault = message.fields["model"], None
        source = unpack_source(message.fields["source"])
        try:
            model = await asyncio.to_thread(lambda: self._front.open(open_source(source)))
        except Exception as error:
            fault = shortage_of(error) or str(error)
            log.error("%s version %s is not loaded: %s", source.name, source.version, fault)
            if not self._started.is_set():
                raise SystemExit(1) from error  # control starts another front-end
        else:
            client = self._engines.client(number, model.dispatcher.deliver)
            loop = asyncio.get_running_loop()
            model.dispatcher.start(client, loop, self._report_soon)
            model.dispatcher.terms = self._terms.get(number)
            self._served[number] = ServedModel(model, client)
        self._reply(message, fault=fault)

    async def _publish(self, message: Message) -> None:
        self._front.add(self._served[message.fields["model"]].model)

    async def _withdraw(self, message: Message) -> None:
        """Let no more requests reach a model, and reply once those that it has are answered."""
        number = message.fields["model"]
        served = self._served.get(number)
        if served is not None:
            self._front.remove(served.model)
            await drain(served.model.dispatcher)
            self._report()
            del self._served[number]
            del served
            release_memory()
        self._terms.pop(number, None)
        self._reply(message)

    def _reply(self, message: Message, **fields: Any) -> None:
        """Reply to control, if it has asked."""
        if (number := message.fields.get("number")) is not None:
            self._control.send(Message("reply", {"number": number, **fields}))

    def _set_terms(self, message: Message, fds: list[int]) -> None:
        number = message.fields["model"]
        before = self._terms.get(number)
        if before is None and not message.arrays:
            return  # the whole terms are about to come
        self._terms[number] = terms = unpack_terms(message, before)
        if number in self._served:
            self._served[number].model.dispatcher.terms = terms

    def _connect(self, message: Message, fds: list[int]) -> None:
        self._engines.connect(message.fields["index"], socket.socket(fileno=fds[0]))

    def _set_accepting(self, message: Message, fds: list[int]) -> None:
        self._engines.set_accepting(message.fields["index"], message.fields["accepts"])

    def _bury(self, message: Message, fds: list[int]) -> None:
        self._engines.bury(message.fields["index"], set(message.fields["executing"]))

    def _set_not_ready(self, message: Message, fds: list[int]) -> None:
        self._front.admission.not_ready = message.fields["reason"]

    def _set_keys(self, message: Message, fds: list[int]) -> None:
        self._gate.keys = unpack_keys(message)

    def _close_connections(self) -> None:
        """Let each connection end with its next answer, so that clients turn to other servers."""
        self._gate.closing = True

    def _flush(self, message: Message, fds: list[int]) -> None:
        self._report()
        self._reply(message)

    def _resolve(self, message: Message, fds: list[int]) -> None:
        future = self._replies.pop(message.fields["number"], None)
        if future is not None and not future.done():
            future.set_result(message)

    def _report_soon(self) -> None:
        """Tell control of answers within a moment, together with those of the moment."""
        if not self._report_due:
            self._report_due = True
            asyncio.get_running_loop().call_later(REPORT_S, self._report)

    def _report(self) -> bool:
        """Tell control what was answered; without news, that this front-end is alive."""
        self._report_due = False
        cancelled, has_news = [], self._counts.has_news
        if self._spans.has_news:
            self._control.send(self._spans.take())
        for number, (model, client) in self._served.items():
            if model.dispatcher.has_answers:
                self._control.send(pack_answers(number, model.dispatcher.take_answers()))
                has_news = True
            if count := client.take_cancelled():
                cancelled.append((number, count))
        samples = self._front.admission.samples
        if not (has_news or cancelled or samples or self._had_news):
            self._control.send(beat(self._counts.loop_lag_s))
            return False
        self._had_news = has_news or samples > 0  # one more report sets the gauges back
        counts = self._counts.take(samples)
        self._control.send(Message("counts", {**counts, "cancelled": cancelled}))
        self._control.send(beat(self._counts.loop_lag_s))
        return True

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let control answer."""
        request = Request(scope, receive)
        number = next(self._numbers)
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._replies[number] = future
        try:
            body = await request.body()
            self._report()  # what this front-end has answered comes first
            self._control.send(pack_request(number, scope, body))
            changes = scope["path"].startswith(f"{REPOSITORY}/models/")
            reply = await asyncio.wait_for(future, CHANGE_S if changes else CONTROL_S)
        except TimeoutError as error:
            raise NotReady(NO_CONTROL, {"Retry-After": "1"}) from error
        finally:
            self._replies.pop(number, None)
        await unpack_response(reply)(scope, receive, send)


def run_front_end(setup: ChildSetup) -> None:
    """Serve HTTP; the role of a child process.

    Its descriptors are the turn of the largest images, the connection to control and the listening
    sockets. Its settings hold the server's, and the number of front-ends, which share what may be
    in flight.
    """
    turn, *connected = setup.fds
    control, *listening = (socket.socket(fileno=each) for each in connected)
    settings = Settings.model_validate(setup.settings["server"])
    settings = share_of(settings, setup.settings["front_ends"])
    counts = FrontCounts()
    front = Front(
        settings,
        counts.inflight,
        seed=setup.index,
        sends_pixels=True,
        beyond=SharedTurn(turn),
    )
    sampler = setup.settings["sampler"] and Sampler(*setup.settings["sampler"])
    spans = SpanBuffer()
    recorder = make_recorder(settings, sampler, spans.add, setup.index)
    app = FrontEnd(front, counts, control, settings, recorder=recorder, spans=spans)
    options = {**tls_options(settings), **proxy_options(settings)}
    app.server = Listener(http_config(app, settings.drain_s, **options))
    app.server.run(sockets=listening)
