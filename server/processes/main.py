"""Serve in several processes: the sockets, the zygote, and control."""

import logging
import socket

import uvloop

from server.lifespan import load_bundles
from server.processes.control_process import ENGINE, FRONT_END, ControlProcess
from server.processes.engine_host import run_engine
from server.processes.front_end import run_front_end
from server.processes.plan import ProcessPlan
from server.processes.zygote import Zygote, start_zygote
from server.settings import Settings

log = logging.getLogger(__name__)

START_FAILED = 3  # exit status; the log has said why


def serve_in_processes(settings: Settings, plan: ProcessPlan) -> None:
    """Serve until a signal ends this process, or it cannot go on."""
    zygote = start_zygote({ENGINE: run_engine, FRONT_END: run_front_end})
    fault = uvloop.run(_serve(settings, plan, zygote))
    if fault is not None:
        log.error("the server has ended: %s", fault)
        raise SystemExit(START_FAILED)


async def _serve(settings: Settings, plan: ProcessPlan, zygote: Zygote) -> str | None:
    listening = [listen(settings.host, settings.port)]
    port = listening[0][0].getsockname()[1]
    listening += [listen(settings.host, port) for _ in range(plan.front_ends - 1)]
    bundles = load_bundles(settings.bundle)
    log.info("listening on http://%s:%d", settings.host, port)
    return await ControlProcess(settings, plan, bundles, listening, zygote).run()


def listen(host: str, port: int) -> list[socket.socket]:
    """Bind one front-end's sockets, one for each address of the host.

    Several front-ends share the addresses, and the kernel spreads connections over them. Each has
    its own sockets, and control keeps them, so that connections wait there while a front-end is
    started again.
    """
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    for family, kind, protocol, _, address in dict.fromkeys(found):
        try:
            sock = socket.socket(family, kind, protocol)
        except OSError:  # the kernel lacks the family
            continue
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if port == 0 and sockets:  # the kernel has chosen one, which all addresses get
            address = (address[0], sockets[0].getsockname()[1], *address[2:])
        sock.bind(address)
        sock.setblocking(False)
        sockets.append(sock)
    return sockets
