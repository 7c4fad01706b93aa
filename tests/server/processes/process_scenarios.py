"""Real processes, run as `process_scenarios.py NAME`; the last line printed is JSON.

A script, since the process of the tests has threads and must not be forked.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import socket
import sys
import time
from typing import Any

from server.processes.child_life import LifeLimits
from server.processes.supervisor import Child, Supervisor
from server.processes.zygote import ChildSetup, StartFailed, Zygote, start_zygote


def tell(setup: ChildSetup) -> None:
    """Write what the child is, then end."""
    with open("/proc/self/comm") as comm:
        name = comm.read().strip()
    document = {
        "role": setup.role,
        "index": setup.index,
        "settings": setup.settings,
        "inherited": [fd for fd in range(3, 100) if fd not in setup.fds and is_open(fd)],
        "comm": name,
        "parent": os.getppid(),
    }
    os.write(setup.fds[-1], json.dumps(document).encode())


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def leave(setup: ChildSetup) -> None:
    sys.exit(setup.settings["status"])


def fail(setup: ChildSetup) -> None:
    print("before the failure")
    raise LookupError("what the role ran into")


def wait(setup: ChildSetup) -> None:
    """Say one byte, then wait for ever."""
    for fd in setup.fds:
        os.write(fd, b"1")
    time.sleep(1000)


def beat(setup: ChildSetup) -> None:
    """Send bytes until control asks for an end."""
    with socket.socket(fileno=setup.fds[0]) as control:
        while True:
            control.send(b"beat")
            asked, _, _ = select.select([control], [], [], 0.02)
            if asked and (not control.recv(100) or setup.settings["obeys"]):
                return


ROLES = {"tell": tell, "leave": leave, "fail": fail, "wait": wait, "beat": beat}


async def descriptors(zygote: Zygote) -> list[int]:
    """Count those of control and of the zygote, which is done with a start when the next is."""
    await zygote.start("leave", 0, {"status": 0}, ())
    return [len(os.listdir(f"/proc/{pid}/fd")) for pid in (os.getpid(), zygote.pid)]


async def ended(
    zygote: Zygote, role: str, index: int = 0, settings: Any = None, fds: Any = ()
) -> int:
    """Start a child and return its wait status."""
    exits: dict[int, int] = {}
    changed = asyncio.Event()

    def on_exit(pid: int, status: int) -> None:
        exits[pid] = status
        changed.set()

    zygote.on_exit = on_exit
    pid = await zygote.start(role, index, settings or {}, fds)
    while pid not in exits:
        changed.clear()
        await changed.wait()
    return exits[pid]


async def starts(zygote: Zygote) -> Any:
    reads, writes = os.pipe()
    closed_on_exec, _other = os.pipe()
    settings = {"name": "images", "exits": [1, 2]}
    status = await ended(zygote, "tell", 12, settings, (closed_on_exec, writes))
    document = json.loads(os.read(reads, 1000))
    return {"status": status, "zygote_is_parent": document.pop("parent") == zygote.pid, **document}


async def statuses(zygote: Zygote) -> Any:
    left = [await ended(zygote, "leave", 0, {"status": status}) for status in (None, 0, 7, "why")]
    return [*map(os.waitstatus_to_exitcode, [*left, await ended(zygote, "fail")])]


async def refusals(zygote: Zygote) -> Any:
    messages = []
    for role, settings, fds in [("pilot", {}, ()), ("tell", {"x": "y" * 200_000}, ())]:
        try:
            await zygote.start(role, 0, settings, fds)
        except ValueError as error:
            messages.append(str(error))
    return messages


async def many(zygote: Zygote) -> Any:
    """Children started at once, each ending at once: every end is reported after its start."""
    known: set[int] = set()
    early, left = [], 100
    done = asyncio.Event()

    def on_exit(pid: int, status: int) -> None:
        nonlocal left
        left -= 1
        early.extend([pid] if pid not in known else [])
        if left == 0:
            done.set()

    zygote.on_exit = on_exit

    async def one(index: int) -> None:
        known.add(await zygote.start("leave", index, {"status": 0}, ()))

    await asyncio.gather(*map(one, range(left)))
    await done.wait()
    return {"early": early}


async def cancelled(zygote: Zygote) -> Any:
    """A start whose caller has gone: the child is killed."""
    exits: asyncio.Queue[int] = asyncio.Queue()
    zygote.on_exit = lambda pid, status: exits.put_nowait(status)
    task = asyncio.create_task(zygote.start("wait", 0, {}, ()))
    await asyncio.sleep(0)
    task.cancel()
    return await exits.get()


async def interrupted(zygote: Zygote) -> Any:
    """Signals of a terminal to the whole group: nothing but control hears them."""
    heard: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: heard.append(number))
    reads, writes = os.pipe()
    pid = await zygote.start("wait", 0, {}, (writes,))
    os.read(reads, 1)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.killpg(0, number)
    still_there = os.waitstatus_to_exitcode(await ended(zygote, "leave", 0, {"status": 5})) == 5
    os.kill(pid, 0)
    return {"heard": sorted(heard), "still_there": still_there}


async def closed(zygote: Zygote) -> Any:
    """Closing kills the children, as the end of a pipe shows that only they hold."""
    reads, writes = os.pipe()
    await zygote.start("wait", 0, {}, (writes,))
    os.close(writes)
    os.kill(zygote.pid, signal.SIGSTOP)
    zygote.close()
    zygote.close()
    while os.read(reads, 10):
        pass
    try:
        await zygote.start("wait", 0, {}, ())
    except StartFailed as error:
        return str(error)


async def zygote_killed(zygote: Zygote) -> Any:
    died = asyncio.Event()
    zygote.on_death = died.set
    reads, writes = os.pipe()
    pid = await zygote.start("wait", 0, {}, (writes,))
    os.close(writes)
    os.kill(zygote.pid, signal.SIGKILL)
    await died.wait()
    while os.read(reads, 10):
        pass
    zygote.kill(pid, signal.SIGKILL)  # of a process that is known to be gone: nothing
    return "children gone"


async def control_waits(zygote: Zygote) -> Any:
    """Wait to be killed, with children that hold standard output."""
    for index in range(3):
        reads, writes = os.pipe()
        await zygote.start("wait", index, {}, (writes,))
        os.read(reads, 1)
    print("ready", flush=True)
    await asyncio.sleep(1000)


class Supervised:
    """A supervisor of "beat" children, with what happened in order."""

    def __init__(self, zygote: Zygote, obeys: bool = True, **limits: Any) -> None:
        self.happened: list[str] = []
        self.changed = asyncio.Event()
        self.ends: dict[int, socket.socket] = {}
        self.theirs: dict[int, socket.socket] = {}
        self.obeys = obeys
        self.supervisor = Supervisor(
            zygote,
            time.monotonic,
            LifeLimits(**limits),
            on_suspect=lambda child, suspect: self.note(f"suspect {suspect}"),
            on_lost=lambda: self.note("lost"),
            tick_s=0.01,
        )
        self.watching = asyncio.create_task(self.supervisor.run())

    def note(self, what: str) -> None:
        self.happened.append(what)
        self.changed.set()

    async def until(self, what: str, times: int = 1) -> None:
        while self.happened.count(what) < times:
            self.changed.clear()
            await self.changed.wait()

    def add(self, index: int = 0) -> None:
        def make_setup() -> tuple[dict[str, Any], tuple[int, ...]]:
            self.ends[index], theirs = socket.socketpair()
            return {"obeys": self.obeys}, (theirs.detach(),)

        self.supervisor.add("beat", index, make_setup, self.started, self.ended)

    def started(self, child: Child) -> None:
        ours = self.ends[child.index]
        ours.setblocking(False)
        asyncio.get_running_loop().add_reader(ours.fileno(), self.read, ours, child)

    def read(self, ours: socket.socket, child: Child) -> None:
        try:
            data = ours.recv(1000)
        except ConnectionError:
            data = b""
        if data:
            self.supervisor.ready(child)
            self.supervisor.beat(child)
            if f"ready {child.start}" not in self.happened:
                self.note(f"ready {child.start}")
        else:
            asyncio.get_running_loop().remove_reader(ours.fileno())

    def ended(self, child: Child) -> None:
        asyncio.get_running_loop().remove_reader(self.ends[child.index].fileno())
        self.ends.pop(child.index).close()
        self.note(f"ended {child.start}")

    def pid(self) -> int:
        return self.supervisor.children[0].pid

    async def stop(self, timeout_s: float) -> None:
        self.supervisor.stop_restarting()
        for child in self.supervisor.children:
            self.ends[child.index].send(b"end")
        await self.supervisor.stop(timeout_s)
        self.watching.cancel()


async def restarted(zygote: Zygote) -> Any:
    supervised = Supervised(zygote)
    supervised.add()
    await supervised.until("ready 1")
    os.kill(supervised.pid(), signal.SIGKILL)
    await supervised.until("ready 2")
    await supervised.stop(60)
    return {"happened": supervised.happened, "restarts": supervised.supervisor.restarts}


async def hung(zygote: Zygote) -> Any:
    supervised = Supervised(zygote, suspect_s=0.5, kill_s=1.0)
    supervised.add()
    await supervised.until("ready 1")
    os.kill(supervised.pid(), signal.SIGSTOP)
    await supervised.until("suspect True")
    await supervised.until("ready 2")
    await supervised.stop(60)
    return supervised.happened


async def paused(zygote: Zygote) -> Any:
    supervised = Supervised(zygote, suspect_s=0.5, kill_s=60)
    supervised.add()
    await supervised.until("ready 1")
    os.kill(supervised.pid(), signal.SIGSTOP)
    await supervised.until("suspect True")
    os.kill(supervised.pid(), signal.SIGCONT)
    await supervised.until("suspect False")
    await supervised.stop(60)
    return supervised.happened


async def stalled(zygote: Zygote) -> Any:
    """Control itself stands still for longer than a child may be silent: nobody is killed."""
    supervised = Supervised(zygote, suspect_s=0.5, kill_s=1.0)
    supervised.add()
    await supervised.until("ready 1")
    time.sleep(1.5)
    await asyncio.sleep(0.1)
    await supervised.stop(60)
    return supervised.happened


async def leaks(zygote: Zygote) -> Any:
    supervised = Supervised(zygote, first_backoff_s=0.0, max_backoff_s=0.0)
    supervised.add()
    await supervised.until("ready 1")
    before = await descriptors(zygote)
    for start in range(1, 21):
        os.kill(supervised.pid(), signal.SIGKILL)
        await supervised.until(f"ready {start + 1}")
    after = await descriptors(zygote)
    await supervised.stop(60)
    return {"before": before, "after": after}


async def stubborn(zygote: Zygote) -> Any:
    supervised = Supervised(zygote, obeys=False)
    supervised.add()
    await supervised.until("ready 1")
    await supervised.stop(0.1)
    return {"happened": supervised.happened, "left": supervised.supervisor.children}


async def lost(zygote: Zygote) -> Any:
    supervised = Supervised(zygote)
    supervised.add()
    await supervised.until("ready 1")
    os.kill(zygote.pid, signal.SIGKILL)
    await supervised.until("lost")
    await supervised.supervisor.stop(60)
    return supervised.happened


def main() -> None:
    zygote = start_zygote(ROLES)
    result = asyncio.run(globals()[sys.argv[1]](zygote))
    zygote.close()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
