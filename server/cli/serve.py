"""`eenet serve`: the HTTP server."""

import argparse
import logging
import os
import resource
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from server.app import create_app
from server.bundle_folders import bundles_at_start
from server.cli.options import log_to_stderr
from server.cores import usable_cores
from server.gate import KeyFiles
from server.http_protocol import http_config
from server.lifespan import DrainingServer
from server.listening import check_addresses, open_listeners, warn_if_open
from server.loading import device_names
from server.processes.main import START_FAILED, serve_in_processes
from server.processes.plan import make_plan
from server.settings import ENV_PREFIX, Settings, load_settings, share_of
from server.tls import check_tls, tls_options

DESCRIPTORS, DESCRIPTORS_PER_PROCESS = 48, 8  # that a start takes, some of them for a moment
EXAMPLE = "eenet serve --budget-ms 1.2 --window 500"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every setting, and --config."""
    for name, field in Settings.model_fields.items():
        default = "the shipped ones" if name == "bundle" else field.default
        shown = "" if default in (None, "", ()) else f" (default: {default})"
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
    check_addresses(settings)
    check_tls(settings)
    KeyFiles(settings)  # whoever serves reads them again
    log_to_stderr(settings.log_level)
    logging.getLogger("eenet").info("settings %s", settings.model_dump_json())
    for found in bundles_at_start(settings):
        # Report a bundle that is damaged or lacks precision or policy before anything is started.
        variant = found.bundle.variant(settings.named_precision)
        if settings.policy is not None:
            variant.scheduler(settings.policy)
    plan = make_plan(settings, usable_cores(), device_names(settings))
    check_descriptors(plan.front_ends + (plan.engines or plan.runs))
    share_of(settings, max(plan.front_ends, 1))  # report one that is too small
    if plan.front_ends:
        serve_in_processes(settings, plan)
    else:
        serve_in_one_process(settings)


def serve_in_one_process(settings: Settings) -> None:
    """Serve until a signal ends the process."""
    with open_listeners(settings, 1) as listeners:
        warn_if_open(settings, listeners)
        config = http_config(
            create_app(settings, listeners.admin), settings.drain_s, **tls_options(settings)
        )
        server = DrainingServer(config, settings.deregister_s)
        try:
            server.run(listeners.main[0])
        except (RuntimeError, SystemExit):
            if server.started:
                raise
    if not server.started:
        logging.shutdown()
        os._exit(START_FAILED)  # without memory, threads may not even end


def check_descriptors(processes: int) -> None:
    """Check that there may be enough open files to start.

    Raises:
        ValueError: If there may not; libraries end the process when they run out of them.
    """
    needed = DESCRIPTORS + DESCRIPTORS_PER_PROCESS * processes
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and limit < needed:
        raise ValueError(
            f"only {limit} files may be open at a time, and this server starts with {needed}; "
            f"raise `ulimit -n`"
        )


def interrupted(args: argparse.Namespace) -> str:
    """Sentence after Ctrl-C."""
    return "the server has stopped"
