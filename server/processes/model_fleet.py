"""The models of a server of several processes, as control spreads them over engines and fronts."""

import asyncio
import functools
import itertools
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np

from models.bundle import Bundle
from server.bundle_folders import BundleSource, FoundBundle
from server.control import Control
from server.memory import available_bytes
from server.model import ModelControl
from server.processes.asking import Asker, ProcessGone
from server.processes.engine_group import EngineGroup
from server.processes.links import EngineProcess, FrontProcess
from server.processes.messages import (
    facts_of,
    pack_source,
    pack_terms,
    unpack_answers,
    unpack_work,
)
from server.processes.trial import Tried
from server.processes.wire import Message
from server.reports import EntryTerms
from server.settings import Settings
from server.unloading import DRAIN_S, release_memory

log = logging.getLogger(__name__)

LOAD_S = 600.0  # for a process to load a model; one that starts gets less from its supervisor
UNLOAD_S = DRAIN_S + 10.0
TryOut = Callable[[BundleSource], Awaitable[Tried]]


class FleetModel:
    """A model on all engines and front-ends.

    Args:
        number: Names it in messages; no other one ever has the same.
        source: Its bundle.
        bundle: The same, verified.
        group: Its engines.
        facts: What an engine has found out, as `facts_fields`; None: the first one finds out.

    Attributes:
        terms: Those under which requests enter.
        control: Its control; None before it is served.
        is_published: Whether requests may reach it.
    """

    control: ModelControl | None = None
    terms: EntryTerms | None = None
    is_published = False

    def __init__(
        self,
        number: int,
        source: BundleSource,
        bundle: Bundle,
        group: EngineGroup,
        facts: dict[str, Any] | None,
    ) -> None:
        self.number, self.source, self.bundle = number, source, bundle
        self.group, self.facts = group, facts

    def described(self) -> Message:
        """Return the message that tells a front-end of it."""
        return Message("model", {"model": self.number, "source": pack_source(self.source)})


class ModelFleet:
    """Loads models into engines and front-ends, and takes them out again; a `ModelHost`.

    Args:
        settings: The server's.
        control: What the operators' routes share.
        engines: All engines.
        fronts: All front-ends.
        asker: Asks them.
        try_out: Loads a model in a process of its own.
        clock: Seconds, monotonic; shared by all processes of the host.
    """

    def __init__(
        self,
        settings: Settings,
        control: Control,
        engines: Sequence[EngineProcess],
        fronts: Sequence[FrontProcess],
        asker: Asker,
        try_out: TryOut,
        clock: Callable[[], float],
    ) -> None:
        self._settings, self._control, self._clock = settings, control, clock
        self._engines, self._fronts, self._asker = engines, fronts, asker
        self._try_out = try_out
        self._numbers = itertools.count()
        self._served: dict[int, FleetModel] = {}  # what every process is to have
        self._leaving: dict[int, FleetModel] = {}  # still reported on
        self.workers: int | None = None  # threads of an engine, once one has counted them

    @property
    def engines(self) -> int:
        """How many processes load a network."""
        return max(len(self._engines), 1)

    @property
    def models(self) -> list[FleetModel]:
        """Those that are served."""
        return list(self._served.values())

    def begin(self, found: Sequence[FoundBundle]) -> None:
        """Note what the first engine is to load."""
        for source, bundle in found:
            model = self._model(source, bundle, None)
            self._served[model.number] = model

    def publish_all(self) -> None:
        """Let requests reach what the first engine has loaded, as soon as there are front-ends."""
        for model in self._served.values():
            model.control = self._make_control(model, None)
            self._control.models.add(model.control)
            model.is_published = True

    async def equip(self, engine: EngineProcess) -> None:
        """Let an engine that has started load what is served, also what comes and goes meanwhile.

        Raises:
            ProcessGone: If it ends before.
            TimeoutError: If it takes too long.
            ValueError: If it cannot load a model.
        """
        has_started = False
        while True:
            missing = [each for n, each in self._served.items() if n not in engine.installed]
            surplus = engine.installed - self._served.keys()
            if missing:
                await self._install(engine, missing[0])
            elif surplus:
                await self._remove(engine, min(surplus))
            elif has_started:
                return
            else:
                reply = await self._asker.ask(
                    engine, Message("start", {"workers": self.workers}), LOAD_S
                )
                self.workers, has_started = reply.fields["workers"], True

    def brief_engine(self, engine: EngineProcess) -> None:
        """Tell an engine that is equipped what the others know."""
        for model in self._served.values():
            model.group.brief(engine)

    def brief_front(self, front: FrontProcess) -> None:
        """Tell a front-end that starts what is served."""
        for model in self._served.values():
            front.send(model.described())
            if model.terms is not None:
                front.send(pack_terms(model.number, model.terms))
            if model.is_published:
                front.send(Message("publish", {"model": model.number}))

    async def load(
        self, source: BundleSource, bundle: Bundle, predecessor: ModelControl | None
    ) -> None:
        """Serve a bundle; as `ModelHost`."""
        tried = await self._try_out(source)
        needed, available = tried.grown_bytes * self.engines, available_bytes()
        if available is not None and needed > available:
            raise ValueError(
                f"it takes {needed >> 20} MiB in {self.engines} engines, and {available >> 20} MiB "
                f"are free; unload another model before, or give this server more memory"
            )
        model = self._model(source, bundle, tried.facts)
        model.control = await asyncio.to_thread(self._make_control, model, predecessor)
        self._served[model.number] = model
        try:
            able = [engine for engine in self._engines if engine.ready.is_set()]
            await _all([self._install(engine, model) for engine in able])
            await _all([self._describe(front, model) for front in self._fronts])
        except (ValueError, ProcessGone, TimeoutError) as error:
            await self._withdraw(model)
            model.control.close(self._successor(model))
            raise ValueError(_sentence(error)) from error
        model.is_published = True
        for front in self._fronts:
            front.send(Message("publish", {"model": model.number}))
        self._control.models.add(model.control)

    async def unload(self, control: ModelControl) -> None:
        """Serve a model no more; as `ModelHost`."""
        (model,) = [each for each in self._served.values() if each.control is control]
        self._control.models.remove(control)
        await self._withdraw(model)
        control.close(self._successor(model))
        model.control = None
        release_memory()

    def note_work(self, engine: EngineProcess, message: Message) -> None:
        """Book what an engine has done for a model."""
        model = self._find(message)
        if model is None:
            return
        engine.work[model.number] = work = unpack_work(message)
        engine.audits_settled[model.number] += work.audits_settled
        if model.control is not None:
            model.control.note_work(work)

    def note_answers(self, message: Message) -> None:
        """Book what a front-end has answered for a model."""
        model = self._find(message)
        if model is not None and model.control is not None:
            model.control.note_answers(unpack_answers(message))

    def note_cancelled(self, counts: Sequence[tuple[int, int]]) -> None:
        """Count requests whose clients left before an engine had them, by number of the model."""
        for number, count in counts:
            model = self._served.get(number) or self._leaving.get(number)
            if model is not None and model.control is not None:
                model.control.note_cancelled(count)

    def note_loss(self, engine: EngineProcess) -> None:
        """Count the audits that an engine has died with."""
        for number, model in self._served.items():
            lost = engine.take_lost_audits(number)
            if model.control is not None:
                model.control.note_lost_audits(lost)

    def show_queues(self) -> None:
        """Set the gauges of what waits in all engines."""
        for number, model in self._served.items():
            if model.control is None:
                continue
            reports = [each.work[number] for each in self._engines if number in each.work]
            none = np.zeros(model.control.num_exits, np.int64)
            depths = sum([report.queue_depths for report in reports], none)
            oldest_s = max([report.oldest_wait_s for report in reports], default=0.0)
            model.control.show_queues(depths.tolist(), oldest_s)

    def _model(
        self, source: BundleSource, bundle: Bundle, facts: dict[str, Any] | None
    ) -> FleetModel:
        number = next(self._numbers)
        group = EngineGroup(number, self._engines, self._asker.ask)
        return FleetModel(number, source, bundle, group, facts)

    def _make_control(self, model: FleetModel, predecessor: ModelControl | None) -> ModelControl:
        """Read the schedulers of a model; any thread may call before it is served."""
        assert model.facts is not None, "an engine or a trial has loaded it"
        return ModelControl(
            model.bundle,
            self._settings,
            self._control.metrics,
            self._control.answers,
            facts_of(model.facts),
            model.group,
            functools.partial(self._set_terms, model),
            self._clock,
            predecessor,
            model.number,
        )

    def _set_terms(self, model: FleetModel, terms: EntryTerms) -> None:
        before, model.terms = model.terms, terms
        if model.number not in self._served:
            return
        message = pack_terms(model.number, terms)
        if before is not None and before.policy_version == terms.policy_version:
            message = message._replace(arrays=())  # the frontier is the same, and long
        for front in self._fronts:
            front.send(message)

    async def _install(self, engine: EngineProcess, model: FleetModel) -> None:
        """Let an engine load a model.

        Raises:
            ProcessGone: If it ends before.
            TimeoutError: If it takes too long.
            ValueError: If it cannot.
        """
        source = pack_source(model.source)
        fields = {"model": model.number, "source": source, "facts": model.facts}
        reply = await self._asker.ask(engine, Message("load", fields), LOAD_S)
        if reply.fields["fault"] is not None:
            raise ValueError(reply.fields["fault"])
        model.facts = model.facts or reply.fields["facts"]
        engine.installed.add(model.number)
        model.group.brief(engine)

    async def _describe(self, front: FrontProcess, model: FleetModel) -> None:
        """Let a front-end prepare for a model; one that ends or starts is briefed anew.

        Raises:
            TimeoutError: If it takes too long.
            ValueError: If it cannot.
        """
        assert model.terms is not None, "control has set them"
        front.send(pack_terms(model.number, model.terms))
        if not front.ready.is_set():
            front.send(model.described())
            return
        try:
            reply = await self._asker.ask(front, model.described(), LOAD_S)
        except ProcessGone:
            return
        if reply.fields["fault"] is not None:
            raise ValueError(reply.fields["fault"])

    async def _withdraw(self, model: FleetModel) -> None:
        """Take a model out of all processes, once they have answered what they have of it."""
        del self._served[model.number]
        self._leaving[model.number] = model
        model.is_published = False
        fields = {"model": model.number}
        asked = [
            self._asker.ask(front, Message("withdraw", fields), UNLOAD_S)
            for front in self._fronts
            if front.channel is not None
        ]
        await asyncio.gather(*asked, return_exceptions=True)  # one that has ended has none of it
        able = [each for each in self._engines if model.number in each.installed]
        removals = [self._remove(engine, model.number) for engine in able]
        await asyncio.gather(*removals, return_exceptions=True)
        del self._leaving[model.number]
        for engine in self._engines:
            engine.work.pop(model.number, None)
            engine.audits_settled.pop(model.number, None)

    async def _remove(self, engine: EngineProcess, number: int) -> None:
        engine.installed.discard(number)  # it gets no more messages about it
        await self._asker.ask(engine, Message("unload", {"model": number}), UNLOAD_S)

    def _successor(self, model: FleetModel) -> ModelControl | None:
        same = model.source.name, model.source.version
        found = [each for each in self._control.models if (each.name, each.version) == same]
        return found[0] if found else None

    def _find(self, message: Message) -> FleetModel | None:
        number = message.fields["model"]
        return self._served.get(number) or self._leaving.get(number)


async def _all(running: Sequence[Awaitable[None]]) -> None:
    """Wait for all; then raise what one of them has raised."""
    for outcome in await asyncio.gather(*running, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome


def _sentence(error: Exception) -> str:
    """Say why a process could not load a model."""
    if isinstance(error, ProcessGone):
        return "an engine has ended while it loaded the model; the log has the cause"
    if isinstance(error, TimeoutError):
        return f"loading it took more than {LOAD_S:g} s"
    return str(error)
