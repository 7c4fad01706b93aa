"""Serve in several processes: the sockets, the zygote, and control."""

import logging

import uvloop

from server.listening import open_listeners, warn_if_open
from server.processes.control_process import ENGINE, FRONT_END, ControlProcess
from server.processes.engine_host import run_engine
from server.processes.front_end import run_front_end
from server.processes.plan import ProcessPlan
from server.processes.trial import TRIAL, run_trial
from server.processes.zygote import Zygote, start_zygote
from server.settings import Settings
from server.trace_settings import TraceSettings

log = logging.getLogger(__name__)

START_FAILED = 3  # exit status; the log has said why


def serve_in_processes(settings: Settings, plan: ProcessPlan, traces: TraceSettings | None) -> None:
    """Serve until a signal ends this process, or it cannot go on."""
    zygote = start_zygote({ENGINE: run_engine, FRONT_END: run_front_end, TRIAL: run_trial})
    fault = uvloop.run(_serve(settings, plan, traces, zygote))
    if fault is not None:
        log.error("the server has ended: %s", fault)
        raise SystemExit(START_FAILED)


async def _serve(
    settings: Settings, plan: ProcessPlan, traces: TraceSettings | None, zygote: Zygote
) -> str | None:
    with open_listeners(settings, plan.front_ends) as listeners:
        warn_if_open(settings, listeners)
        return await ControlProcess(settings, plan, listeners, zygote, traces=traces).run()
