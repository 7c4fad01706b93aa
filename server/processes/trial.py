"""A process that loads a model for the first time, and measures it.

A model that kills its process, by a damaged graph or by the memory that it takes, kills this one
and no engine, which runs requests of other models.
"""

import asyncio
import logging
import os
import signal
import socket
from typing import Any, NamedTuple

from server.bundle_folders import BundleSource, open_source
from server.process_metrics import read_use
from server.processes.channel import Channel
from server.processes.messages import facts_fields, pack_source, unpack_source
from server.processes.wire import Message, encode
from server.processes.zygote import ChildSetup, StartFailed, Zygote
from server.runner import ModelRunner
from server.settings import Settings
from server.shortage import shortage_of

log = logging.getLogger(__name__)

TRIAL_S = 120.0
ENDED = (
    "the process that tried to load it has ended: it ran out of memory, or a graph is damaged; see "
    "the log"
)


class Tried(NamedTuple):
    """What the trial of a model found out.

    Attributes:
        facts: As `facts_fields`.
        grown_bytes: Memory that loading took.
    """

    facts: dict[str, Any]
    grown_bytes: int


async def try_out(zygote: Zygote, settings: Settings, source: BundleSource) -> Tried:
    """Load a model in a process of its own.

    Args:
        zygote: Forks the process.
        settings: An engine's.
        source: The model's bundle.

    Raises:
        ValueError: If it cannot be loaded; the sentence says why.
    """
    ours, theirs = socket.socketpair()
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[Message] = loop.create_future()

    def settle(message: Message) -> None:
        if not outcome.done():
            outcome.set_result(message)

    closed = Message("tried", {"fault": ENDED})
    channel = Channel(ours, loop, lambda message, fds: settle(message), lambda: settle(closed))
    try:
        server = settings.model_dump(mode="json")
        with theirs:
            setup = {"server": server, "source": pack_source(source)}
            pid = await zygote.start(TRIAL, 0, setup, [theirs.fileno()])
        try:
            fields = (await asyncio.wait_for(outcome, TRIAL_S)).fields
        except TimeoutError as error:
            zygote.kill(pid, signal.SIGKILL)
            raise ValueError(f"loading it took more than {TRIAL_S:g} s") from error
    except StartFailed as error:
        raise ValueError(f"no process could be started to try it: {error}") from error
    finally:
        channel.close()
    if fields["fault"] is not None:
        raise ValueError(fields["fault"])
    return Tried(fields["facts"], fields["grown_bytes"])


TRIAL = "trial"  # a role


def run_trial(setup: ChildSetup) -> None:
    """Load and measure a model, and report to control; the role of a child process."""
    (control,) = setup.fds
    settings = Settings.model_validate(setup.settings["server"])
    fields: dict[str, Any] = {"fault": None}
    before = read_use(os.getpid()).resident_bytes
    try:
        runner = ModelRunner(open_source(unpack_source(setup.settings["source"])), settings)
        fields["facts"] = facts_fields(runner.facts)
        fields["grown_bytes"] = max(read_use(os.getpid()).resident_bytes - before, 0)
    except (ValueError, MemoryError, RuntimeError, OSError) as error:
        shortage = shortage_of(error)
        if shortage is None and not isinstance(error, ValueError):
            raise
        fields["fault"] = shortage or str(error)
    with socket.socket(fileno=control) as sock:
        for part in encode(Message("tried", fields)):
            sock.sendall(part)
