"""The sockets that the server listens on: addresses, a Unix socket, or one that was handed over."""

import contextlib
import errno
import ipaddress
import logging
import os
import socket
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from server.settings import Settings

log = logging.getLogger(__name__)

ALL_OF_IPV6 = "::"  # IPv4 too, as on most systems
TOO_FEW = "too few file descriptors are left; raise `ulimit -n`"


class Listeners(NamedTuple):
    """The sockets of a server.

    Attributes:
        main: Those that each front-end accepts from.
        admin: Those of --admin-port.
    """

    main: list[list[socket.socket]]
    admin: list[socket.socket]


class Candidate(NamedTuple):
    """An address that a host name stands for."""

    family: int
    kind: int
    protocol: int
    address: tuple[Any, ...]


@contextlib.contextmanager
def open_listeners(settings: Settings, front_ends: int) -> Iterator[Listeners]:
    """Bind all sockets of a server; on the way out close them and remove a Unix socket's file.

    Args:
        settings: The server's.
        front_ends: Number of processes that accept connections, at least 1.

    Raises:
        ValueError: If one cannot be bound; the message names it and the remedy.
    """
    with contextlib.ExitStack() as stack:
        main = _open_main(settings, front_ends, stack)
        admin: list[socket.socket] = []
        if settings.admin_port is not None:
            admin = listen(settings.admin_host, settings.admin_port, of="admin-")
        for sock in (*admin, *[each for sockets in main for each in sockets]):
            stack.callback(sock.close)
        secure = "https" if settings.ssl_certfile else "http"
        log.info("listening on %s", url_of(main[0][0], secure))
        if admin:
            log.info("administration on %s", url_of(admin[0], secure))
        yield Listeners(main, admin)


def check_addresses(settings: Settings) -> None:
    """Check that the server can listen where it should, before models load.

    Raises:
        ValueError: If it cannot; the message gives the reason.
    """
    if settings.uds is None and settings.fd is None:
        check_address(settings.host, settings.port)
    if settings.admin_port is not None:
        check_address(settings.admin_host, settings.admin_port, of="admin-")


def check_address(host: str, port: int, of: str = "") -> None:
    """Check that no other server listens there, not even one that would share the port.

    Args:
        host: A name or an address; brackets around IPv6 are taken off.
        port: The port; 0 is always free.
        of: What the flags for it begin with.

    Raises:
        ValueError: If it cannot; the message gives the reason.
    """
    for candidate in find_addresses(host, port, of):
        sock = _new_socket(candidate)
        if sock is None:
            continue
        with sock:
            _bind(sock, candidate.address, host, port, of)


def listen(host: str, port: int, sharers: int = 1, of: str = "") -> list[socket.socket]:
    """Bind one process's sockets, one for each address of the host.

    Several front-ends share the addresses, and the kernel spreads connections over them. Each has
    its own sockets, and control keeps them, so that connections wait there while a front-end is
    started again.

    Args:
        host: As `check_address`.
        port: The port; 0: the kernel chooses one, the same for all addresses.
        sharers: Number of processes that listen there.
        of: As `check_address`.

    Raises:
        ValueError: If it cannot; the message gives the reason.
    """
    sockets: list[socket.socket] = []
    try:
        for candidate in find_addresses(host, port, of):
            sock = _new_socket(candidate)
            if sock is None:
                continue
            sockets.append(sock)
            if sharers > 1:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            address = candidate.address
            if port == 0 and len(sockets) > 1:
                address = (address[0], sockets[0].getsockname()[1], *address[2:])
            _bind(sock, address, host, port, of)
            sock.setblocking(False)
    except ValueError:
        for sock in sockets:
            sock.close()
        raise
    if not sockets:
        raise ValueError(f"this system has no network for host {host!r}; give another --{of}host")
    return sockets


def find_addresses(host: str, port: int, of: str = "") -> list[Candidate]:
    """Return the addresses that a host stands for; all of them for an empty one.

    Raises:
        ValueError: If there are none.
    """
    name = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        found = socket.getaddrinfo(
            name or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"cannot listen on port {port} of host {host!r}, which is unknown ({reason}); give "
            f"another --{of}host"
        ) from error
    return list(
        dict.fromkeys(
            Candidate(family, kind, protocol, address)
            for family, kind, protocol, _, address in found
        )
    )


def listen_unix(path: Path) -> socket.socket:
    """Bind a Unix socket; the file of a server that is gone makes room.

    Raises:
        ValueError: If it cannot; the message gives the reason.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _make_room(path)
        sock.bind(os.fspath(path))
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        reason = error.strerror or error
        raise ValueError(f"cannot listen on {path} ({reason}); give another --uds") from error
    except ValueError:
        sock.close()
        raise
    return sock


def open_descriptor(number: int) -> socket.socket:
    """Take over a socket that whoever started the server has bound, as systemd does.

    Raises:
        ValueError: If the descriptor is no such socket.
    """
    try:
        sock = socket.socket(fileno=os.dup(number))
    except OSError as error:
        if error.errno == errno.EMFILE:
            raise ValueError(TOO_FEW) from error
        raise ValueError(
            f"file descriptor {number} is no socket ({error.strerror}); give --fd the number of "
            f"one that is bound"
        ) from error
    if sock.type != socket.SOCK_STREAM:
        sock.close()
        raise ValueError(f"file descriptor {number} is no stream socket; give another --fd")
    sock.setblocking(False)
    return sock


def url_of(sock: socket.socket, scheme: str) -> str:
    """Where a socket listens, for people."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return f"{scheme}+unix://{name}"
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"{scheme}://{host}:{name[1]}"


def warn_if_open(settings: Settings, listeners: Listeners) -> None:
    """Log one line if other machines may ask without a key."""
    public = reach_beyond_host(listeners.main[0])
    anyone = []
    if public and settings.api_keys is None:
        anyone.append("ask for predictions (--api-keys FILE)")
    if settings.admin_keys is None:
        admin = listeners.admin or listeners.main[0]
        if reach_beyond_host(admin):
            anyone.append("change budgets and read the audit (--admin-keys FILE, or --admin-port)")
    if anyone:
        log.warning("other machines can connect, and without a key %s", " and ".join(anyone))


def reach_beyond_host(sockets: Sequence[socket.socket]) -> bool:
    """Whether other machines can connect to one of them."""
    addresses = [sock.getsockname()[0] for sock in sockets if sock.family != socket.AF_UNIX]
    return not all(ipaddress.ip_address(each.partition("%")[0]).is_loopback for each in addresses)


def _open_main(
    settings: Settings, front_ends: int, stack: contextlib.ExitStack
) -> list[list[socket.socket]]:
    if settings.fd is not None:
        return [[open_descriptor(settings.fd)]] * front_ends
    if settings.uds is not None:
        sock = listen_unix(settings.uds)
        stack.callback(_remove_file, settings.uds, settings.uds.stat().st_ino)
        return [[sock]] * front_ends
    first = listen(settings.host, settings.port, front_ends)
    port = first[0].getsockname()[1]
    return [first, *[listen(settings.host, port, front_ends) for _ in range(front_ends - 1)]]


def _new_socket(candidate: Candidate) -> socket.socket | None:
    """Make a socket; None if the kernel lacks the family."""
    try:
        sock = socket.socket(candidate.family, candidate.kind, candidate.protocol)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise ValueError(TOO_FEW) from error
        return None
    # A port in TIME_WAIT is free. Both families have one socket each, `::` alone takes both.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return sock


def _bind(sock: socket.socket, address: tuple[Any, ...], host: str, port: int, of: str) -> None:
    if sock.family == socket.AF_INET6:
        # `::` in any spelling; an empty host has an address of IPv4 beside it.
        dual = bool(host.strip("[]")) and address[0] == ALL_OF_IPV6
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if dual else 1)
    try:
        sock.bind(address)
    except OSError as error:
        raise ValueError(_reason(host, port, of, error)) from error


def _reason(host: str, port: int, of: str, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} on {host} is taken by another process; stop that one, or give another "
            f"--{of}port"
        )
    if error.errno == errno.EACCES:
        return f"port {port} needs privileges; give a --{of}port of 1024 or more"
    return f"cannot listen on {host}, port {port} ({error.strerror}); give another --{of}host"


def _make_room(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ValueError(f"{path} is there and is no socket; remove it, or give another --uds")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()  # of a server that was killed
            return
    raise ValueError(f"{path} is taken by another process; stop that one, or give another --uds")


def _remove_file(path: Path, inode: int) -> None:
    """Remove a Unix socket's file, unless another server has put its own there."""
    with contextlib.suppress(OSError):
        if path.stat().st_ino == inode:
            path.unlink()
