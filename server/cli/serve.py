"""`eenet serve`: the HTTP server."""

import argparse
import errno
import logging
import os
import socket
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from models.bundle import load_bundle
from server.app import create_app
from server.cli.options import log_to_stderr
from server.cores import usable_cores
from server.http_protocol import http_config
from server.lifespan import DrainingServer
from server.loading import device_names
from server.processes.main import START_FAILED, serve_in_processes
from server.processes.plan import make_plan
from server.settings import ENV_PREFIX, Settings, load_settings, share_of

EXAMPLE = "eenet serve --budget-ms 1.2 --window 500"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every setting, and --config."""
    for name, field in Settings.model_fields.items():
        default = "the shipped ones" if name == "bundle" else field.default
        shown = "" if default is None else f" (default: {default})"
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            action="append" if name == "bundle" else "store",
            default=argparse.SUPPRESS,
            metavar=_metavar(name, field.annotation),
            help=f"{field.description}{shown}; ${ENV_PREFIX}{name.upper()}",
        )
    parser.add_argument(
        "--config",
        type=Path,
        help="TOML file of the same settings, named with underscores",
    )


def _metavar(name: str, annotation: Any) -> str:
    """Return the values of a setting that has few, else the last word of its name."""
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    return name.rpartition("_")[2].upper()


def run(args: argparse.Namespace) -> None:
    """Serve until a signal ends the process."""
    flags = {name: value for name, value in vars(args).items() if name in Settings.model_fields}
    if "bundle" in flags:
        flags["bundle"] = tuple(flags["bundle"])
    settings = load_settings(flags, args.config, os.environ)
    check_address(settings.host, settings.port)
    log_to_stderr(settings.log_level)
    logging.getLogger("eenet").info("settings %s", settings.model_dump_json())
    for folder in settings.bundle:
        # Report a bundle that is damaged or lacks the precision before anything is started.
        load_bundle(folder).variant(settings.named_precision)
    plan = make_plan(settings, usable_cores(), device_names(settings))
    share_of(settings, max(plan.front_ends, 1))  # report one that is too small
    if plan.front_ends:
        serve_in_processes(settings, plan)
    else:
        serve_in_one_process(settings)


def serve_in_one_process(settings: Settings) -> None:
    """Serve until a signal ends the process."""
    address = {"host": settings.host, "port": settings.port}
    server = DrainingServer(http_config(create_app(settings), settings.drain_s, **address))
    server.run()
    if not server.started:
        raise SystemExit(START_FAILED)


def interrupted(args: argparse.Namespace) -> str:
    """Sentence after Ctrl-C."""
    return "the server has stopped"


def check_address(host: str, port: int) -> None:
    """Check that the server can listen there, before models load.

    Raises:
        ValueError: If it cannot; the message gives the reason.
    """
    try:
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise ValueError(f"host {host!r} is unknown ({error}); give another --host") from error
    for family, kind, protocol, _, address in dict.fromkeys(found):
        try:
            probe = socket.socket(family, kind, protocol)
        except OSError:  # the kernel lacks the family, and the server will skip it too
            continue
        with probe:
            # As the server itself will: a port in TIME_WAIT is free, and IPv6 is IPv6 alone.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind(address)
            except OSError as error:
                raise ValueError(_reason(host, port, error)) from error


def _reason(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} on {host} is taken by another process; stop that one, or give another "
            f"--port"
        )
    if error.errno == errno.EACCES:
        return f"port {port} needs privileges; give a --port of 1024 or more"
    return f"cannot listen on {host}, port {port} ({error.strerror}); give another --host"
