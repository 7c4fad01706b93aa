"""The server under test, and ways to speak to it that no well-behaved client has."""

import http.client
import re
import socket
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

MIB = 2**20
CLOSED, OPEN = "closed", "open"
JSON, JPEG, PNG = "application/json", "image/jpeg", "image/png"


class Target(NamedTuple):
    """Where a server is.

    Attributes:
        host: Its host.
        port: Its port.
        pid: Its first process, to watch its memory; None: unknown.
        path: Its route for predictions.
        probe: A route that answers a GET with 200 while the server lives.
        page: A route whose answer to a GET is long.
    """

    host: str
    port: int
    pid: int | None = None
    path: str = "/predict"
    probe: str = "/livez"
    page: str = "/metrics"

    def connect(self, timeout_s: float = 30.0) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout_s)


def target_of(base_url: str, pid: int | None = None, path: str = "/predict") -> Target:
    """The server at an address, with our own routes for probes."""
    parts = urlsplit(base_url)
    return Target(parts.hostname or "127.0.0.1", parts.port or 80, pid, path)


def head(
    method: str, path: str, length: int | None = None, kind: str = "", extra: str = ""
) -> bytes:
    """The head of a request; `extra` holds further lines, each with its end."""
    lines = [f"{method} {path} HTTP/1.1", "Host: x"]
    lines += [f"Content-Type: {kind}"] if kind else []
    lines += [f"Content-Length: {length}"] if length is not None else []
    return ("\r\n".join(lines) + "\r\n" + extra + "\r\n").encode("latin-1")


def ask(
    target: Target, method: str, path: str, body: bytes = b"", kind: str = "", request_id: str = ""
) -> "Answer":
    """One request on a connection of its own."""
    headers = {"Content-Type": kind, "X-Request-ID": request_id}
    client = http.client.HTTPConnection(target.host, target.port, timeout=60)
    try:
        given = {name: value for name, value in headers.items() if value}
        client.request(method, path, body or None, given)
        answer = client.getresponse()
        return Answer(str(answer.status), answer.read(), answer.getheader("Retry-After"))
    except TimeoutError:
        return Answer("timeout", b"")
    except (OSError, http.client.HTTPException):
        return Answer(CLOSED, b"")
    finally:
        client.close()


class Answer(NamedTuple):
    """A status, `closed` or `timeout`; the body; Retry-After."""

    status: str
    body: bytes
    retry_after: str | None = None


def post(target: Target, body: bytes, kind: str) -> str:
    """The status of one prediction."""
    return ask(target, "POST", target.path, body, kind).status


def at_once(count: int, act: Callable[[int], str]) -> Counter[str]:
    """The outcomes of acts that run in threads of their own."""
    with ThreadPoolExecutor(count) as pool:
        return Counter(pool.map(act, range(count)))


def again_and_again(clients: int, seconds: float, act: Callable[[], str]) -> Counter[str]:
    """The outcomes of an act that some clients repeat."""
    ends_s = time.monotonic() + seconds

    def client(_: int) -> Counter[str]:
        seen: Counter[str] = Counter()
        while time.monotonic() < ends_s:
            seen[act()] += 1
        return seen

    with ThreadPoolExecutor(clients) as pool:
        return sum(pool.map(client, range(clients)), Counter())


def exchange(target: Target, *parts: bytes, wait_s: float = 1.0, pause_s: float = 0.1) -> bytes:
    """Send parts with pauses; all that comes back until nothing comes for a while."""
    answer = b""
    with target.connect() as connection:
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause_s)
            connection.settimeout(wait_s)
            while data := connection.recv(65536):
                answer += data
        except OSError:
            pass
    return answer


def statuses_in(answer: bytes) -> list[str]:
    """The statuses of all answers of a connection; `closed` for none."""
    return [code.decode() for code in re.findall(rb"HTTP/1\.1 (\d+)", answer)] or [CLOSED]


def family_of(pid: int) -> list[int]:
    """A process and those that descend from it."""
    found, parents = [pid], [pid]
    while parents:
        for children in Path(f"/proc/{parents.pop()}/task").glob("*/children"):
            try:
                mine = [int(child) for child in children.read_text().split()]
            except OSError:
                continue
            found += mine
            parents += mine
    return found


def named(target: Target, name: str) -> int:
    """The process of a server with a name, such as `eenet-engine-0`."""
    assert target.pid is not None, "give --pid"
    for pid in family_of(target.pid):
        if Path(f"/proc/{pid}/comm").read_text().strip() == name:
            return pid
    raise LookupError(f"no process is named {name}")


def memory_mib(pid: int | None) -> float:
    """Memory of a server's processes, what they share counted once; 0 if the pid is unknown."""
    kib = 0
    for each in family_of(pid) if pid is not None else []:
        try:
            text = Path(f"/proc/{each}/smaps_rollup").read_text()
        except OSError:
            continue  # it has ended
        found = re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE)
        kib += int(found[1]) if found else 0
    return kib / 1024
