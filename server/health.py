"""Asks a server that runs on this host whether it is ready: `python -m server.health`.

The health check of the container. It asks where the server listens, by the flags, environment and
file with which that was started, and no proxy. The standard library alone, since it runs every few
seconds.
"""

import argparse
import http.client
import os
import socket
import ssl
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

SERVER = Path("/proc/1")  # the first process of a container
TIMEOUT_S = 2.0
DEFAULTS = {"host": "127.0.0.1", "port": "8000"}
NAMES = ("host", "port", "uds", "ssl_certfile")
LOOPBACK = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}


class Address(NamedTuple):
    """Where a server listens: a Unix socket, or host and port."""

    host: str
    port: int
    uds: str | None
    is_tls: bool


def address_of(command: Sequence[str], environ: Mapping[str, str], root: Path) -> Address:
    """Return where a server listens that was started so.

    Args:
        command: Its arguments.
        environ: Its environment.
        root: Its folder, for the name of a configuration file.
    """
    parser = argparse.ArgumentParser(add_help=False)
    for name in (*NAMES, "config"):
        parser.add_argument(f"--{name.replace('_', '-')}", default=argparse.SUPPRESS)
    words = [word for word in command if word != "--"]  # of an init process, before the command
    flags = vars(parser.parse_known_args(words)[0])
    config = flags.pop("config", None)
    from_file = {} if config is None else tomllib.loads((root / config).read_text())
    in_environ = {name: environ.get(f"EENET_{name.upper()}") for name in NAMES}
    given = {
        **DEFAULTS,
        **{name: str(from_file[name]) for name in NAMES if name in from_file},
        **{name: value for name, value in in_environ.items() if value is not None},
        **flags,
    }
    host = given["host"].strip("[]")
    uds = given.get("uds")
    return Address(
        LOOPBACK.get(host, host),
        int(given["port"]),
        uds and str(root / uds),
        "ssl_certfile" in given,
    )


def is_ready(address: Address, timeout_s: float = TIMEOUT_S) -> bool:
    """Whether the server answers GET /readyz with 200."""
    client = http.client.HTTPConnection(address.host, address.port, timeout=timeout_s)
    try:
        client.sock = _connect(address, timeout_s)
        client.request("GET", "/readyz")
        return client.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        client.close()


def main() -> int:
    """Return 0 if the server is ready, else 1."""
    command = (SERVER / "cmdline").read_bytes().decode(errors="replace").split("\0")
    address = address_of(command, os.environ, (SERVER / "cwd").resolve())
    return 0 if is_ready(address) else 1


def _connect(address: Address, timeout_s: float) -> socket.socket:
    if address.uds is not None:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(timeout_s)
        sock.connect(address.uds)
    else:
        sock = socket.create_connection((address.host, address.port), timeout_s)
    if not address.is_tls:
        return sock
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # it asks this host alone
    return context.wrap_socket(sock)


if __name__ == "__main__":
    sys.exit(main())
