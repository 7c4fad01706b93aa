"""`eenet serve`: the HTTP server."""

import argparse
import logging
import os
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin
from urllib.parse import unquote

from server.app import create_app
from server.bundle_folders import bundles_at_start
from server.cli.serve_model import add_model_flags, bundle_of, bundle_of_model, cache_of
from server.cores import usable_cores
from server.forwarded import proxy_options
from server.gate import KeyFiles
from server.http_protocol import http_config
from server.lifespan import PROCESS, DrainingServer
from server.listening import check_addresses, open_listeners, warn_if_open
from server.loading import device_names
from server.logs import name_process, start_logging
from server.processes.control_process import CONTROL
from server.processes.main import START_FAILED, serve_in_processes
from server.processes.plan import make_plan
from server.settings import ENV_PREFIX, Settings, load_settings, share_of
from server.shortage import shortage_of
from server.tls import check_tls, tls_options
from server.trace_settings import TraceSettings, trace_settings

DESCRIPTORS, DESCRIPTORS_PER_PROCESS = 48, 8  # that a start takes, some of them for a moment
SECRET_HEADERS = "OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"
BAD_SETTING = 2  # exit status, as of all commands
EXAMPLE = "eenet serve --budget-ms 1.2 --window 500"

log = logging.getLogger("eenet")


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
    add_model_flags(parser)


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
    if args.model is not None and "bundle" in flags:
        raise ValueError("--model makes a bundle of its own; leave out --bundle")
    if args.model is None and (args.dataset is not None or args.revision is not None):
        raise ValueError("--dataset and --revision belong to --model; give it, or leave them out")
    settings = load_settings(flags, args.config, os.environ)
    cache = cache_of(args, os.environ)
    if args.model is not None:
        bundles: tuple[Path, ...] = (bundle_of_model(args, cache),)
    else:
        bundles = tuple(bundle_of(bundle, cache) for bundle in settings.bundle)
    settings = settings.model_copy(update={"bundle": bundles})
    check_addresses(settings)
    check_tls(settings)
    KeyFiles(settings)  # whoever serves reads them again
    traces = trace_settings(os.environ)
    secrets = secrets_of(settings, os.environ)
    start_logging(settings.log_level, settings.log_format, PROCESS, secrets)
    try:
        serve(settings, traces)
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        if settings.log_format == "plain" or not is_known(error):
            raise
        log.critical("%s", shortage_of(error) or error)
        raise SystemExit(BAD_SETTING) from error


def is_known(error: Exception) -> bool:
    """Whether an error has a sentence for the user."""
    return isinstance(error, ValueError | OSError) or shortage_of(error) is not None


def serve(settings: Settings, traces: TraceSettings | None) -> None:
    """Serve until a signal ends the process; the log has started."""
    log.info("settings %s", settings.model_dump_json())
    for found in bundles_at_start(settings):
        # Report a bundle that is damaged or lacks precision or policy before anything is started.
        variant = found.bundle.variant(settings.named_precision)
        if settings.policy is not None:
            variant.scheduler(settings.policy)
    plan = make_plan(settings, usable_cores(), device_names(settings))
    check_descriptors(plan.front_ends + (plan.engines or plan.runs))
    share_of(settings, max(plan.front_ends, 1))  # report one that is too small
    if plan.front_ends:
        name_process(CONTROL, 0)
        serve_in_processes(settings, plan, traces)
    else:
        serve_in_one_process(settings, traces)


def serve_in_one_process(settings: Settings, traces: TraceSettings | None) -> None:
    """Serve until a signal ends the process."""
    with open_listeners(settings, 1) as listeners:
        warn_if_open(settings, listeners)
        options = {**tls_options(settings), **proxy_options(settings)}
        app = create_app(settings, listeners.admin, traces)
        config = http_config(app, settings.drain_s, **options)
        server = DrainingServer(config, settings.deregister_s)
        try:
            server.run(listeners.main[0])
        except (RuntimeError, SystemExit):
            if server.started:
                raise
    if not server.started:
        logging.shutdown()
        os._exit(START_FAILED)  # without memory, threads may not even end


def secrets_of(settings: Settings, environ: Mapping[str, str]) -> list[str]:
    """Return what no line of the log may show: passwords, and what collectors are sent."""
    password = settings.ssl_keyfile_password
    secrets = [] if password is None else [password.get_secret_value()]
    for name in SECRET_HEADERS:
        fields = environ.get(name, "").split(",")
        secrets += [unquote(field.partition("=")[2]).strip() for field in fields]
    return secrets


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
