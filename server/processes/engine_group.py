"""One model on all engines, as control steers it."""

from collections.abc import Awaitable, Callable, Sequence

from scheduler.fitted import Scheduler
from server.processes.asking import ProcessGone
from server.processes.links import EngineProcess, Process
from server.processes.messages import pack_scheduler
from server.processes.wire import Message

TRY_S = 30.0  # for an engine to try a scheduler
NO_ENGINE = "no engine is ready"


class EngineGroup:
    """One model on all engines; `server.engines.Engines`.

    Args:
        model: Its number.
        engines: All engines; those that have not loaded it get no message.
        ask: Sends a message to a process and waits for the reply.
    """

    def __init__(
        self,
        model: int,
        engines: Sequence[EngineProcess],
        ask: Callable[[Process, Message, float], Awaitable[Message]],
    ) -> None:
        self._model, self._engines, self._ask = model, engines, ask
        self._parameter: Message | None = None
        self._max_batch: Message | None = None
        self._scheduler: Message | None = None

    def set_parameter(self, parameter: float, queued: Sequence[float] = ()) -> None:
        """Move the policy's parameter; arguments as of `ActivePolicy.set`."""
        fields = {"model": self._model, "parameter": parameter, "queued": list(queued)}
        message = Message("parameter", fields)
        if message != self._parameter:
            self._parameter = message
            self._tell(message)

    def set_max_batch(self, rows: int) -> None:
        """Set the most rows of a batch."""
        self._max_batch = Message("max_batch", {"model": self._model, "rows": rows})
        self._tell(self._max_batch)

    async def try_scheduler(self, scheduler: Scheduler) -> None:
        """Run one row under another policy.

        Raises:
            ValueError: If that fails.
        """
        able = self._able
        if not able:
            raise ValueError(f"{NO_ENGINE} to try the scheduler; try again")
        message = pack_scheduler("try", scheduler, model=self._model)
        try:
            reply = await self._ask(able[0], message, TRY_S)
        except (TimeoutError, ProcessGone) as error:
            raise ValueError("the engine that tried the scheduler did not answer") from error
        if reply.fields["fault"] is not None:
            raise ValueError(reply.fields["fault"])

    def activate(self, scheduler: Scheduler, policy_version: int, parameter: float) -> None:
        """Switch requests that enter from now on to another policy."""
        fields = {"policy_version": policy_version, "parameter": parameter}
        self._scheduler = pack_scheduler("activate", scheduler, model=self._model, **fields)
        self._parameter = None  # what was told of the queue belongs to the policy before
        self._tell(self._scheduler)

    def brief(self, engine: EngineProcess) -> None:
        """Tell an engine that has started what the others know."""
        for message in (self._scheduler, self._max_batch, self._parameter):
            if message is not None:
                engine.send(message)

    @property
    def fault(self) -> str | None:
        """Why none of them can answer; None while one works."""
        able = self._able
        faults = [engine.work[self._model].fault for engine in able if self._model in engine.work]
        if not able:
            return NO_ENGINE
        return faults[0] if len(faults) == len(able) and all(faults) else None

    @property
    def stall(self) -> str | None:
        """Why the server should be restarted; None while that would not help."""
        given_up = [engine.given_up for engine in self._engines]
        return "every engine has failed to start; see the log" if all(given_up) else None

    @property
    def _able(self) -> list[EngineProcess]:
        return [each for each in self._engines if each.ready.is_set()]

    def _tell(self, message: Message) -> None:
        for engine in self._engines:
            if self._model in engine.installed:
                engine.send(message)
