"""The `eenet` command."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from pydantic import ValidationError

from models.bundle import load_bundle
from server import __version__
from server.app import create_app
from server.cli.loadtest import add_loadtest
from server.cli.options import command, log_to_stderr
from server.cli.policy_commands import add_evaluate, add_fit
from server.cli.profile import add_profile
from server.cli.run_commands import add_attach, add_build, add_import, add_train
from server.cli.simulate import add_simulate
from server.http_protocol import HttpProtocol
from server.lifespan import DrainingServer
from server.problems import first_error
from server.settings import ENV_PREFIX, Settings, load_settings

EXAMPLES = """examples:
  eenet serve                                             the shipped bundles on port 8000
  eenet serve --bundle my-bundle --budget-ms 1.5
  eenet train --arch resnet56 --dataset cifar10_jpegs.npz --out runs/mine
  eenet attach --backbone my-bert --exits 3,6,9,12 --dataset reviews.csv --out runs/bert
  eenet import model_best.pth.tar --arch resnet56_3 --classes 10 --out runs/published
  eenet build runs/mine --out my-bundle
  eenet evaluate my-bundle --report report                which policy wins, and by how much
  eenet fit my-bundle --policy eenet
  eenet profile my-bundle                                 what its exits cost on this machine
  eenet simulate my-bundle --costs 4,8,12 --free-rows 16  what a device of other costs would do
  eenet loadtest http://127.0.0.1:8000 --rate 100         open-loop load on a running server
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; errors that have a remedy are one sentence on stderr and exit status 2."""
    args = _parser().parse_args(argv)
    try:
        run: Callable[[argparse.Namespace], None] = args.run
        run(args)
    except ValidationError as error:
        return _complain(f"bad setting {first_error(error)}")
    except (ValueError, OSError) as error:
        return _complain(str(error))
    except KeyboardInterrupt:
        return 130
    return 0


def _complain(sentence: str) -> int:
    print(f"eenet: {sentence}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="eenet",
        description="Serve multi-exit networks under a latency budget, and make them.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"eenet {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_serve(commands)
    add_train(commands)
    add_attach(commands)
    add_import(commands)
    add_build(commands)
    add_profile(commands)
    add_simulate(commands)
    add_loadtest(commands)
    add_fit(commands)
    add_evaluate(commands)
    return parser


def _add_serve(commands: Any) -> None:
    parser = command(
        commands,
        "serve",
        "Serve bundles over HTTP.",
        "eenet serve --budget-ms 1.2 --window 500",
        _serve,
    )
    for name, field in Settings.model_fields.items():
        action = "append" if name == "bundle" else "store"
        default = "the shipped ones" if name == "bundle" else field.default
        shown = "" if default is None else f" (default: {default})"
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            action=action,
            default=argparse.SUPPRESS,
            metavar=name.rpartition("_")[2].upper(),
            help=f"{field.description}{shown}; ${ENV_PREFIX}{name.upper()}",
        )
    parser.add_argument(
        "--config",
        type=Path,
        help="TOML file of the same settings, by their names with underscores",
    )


def _serve(args: argparse.Namespace) -> None:
    flags = {name: value for name, value in vars(args).items() if name in Settings.model_fields}
    if "bundle" in flags:
        flags["bundle"] = tuple(flags["bundle"])
    settings = load_settings(flags, args.config, os.environ)
    log_to_stderr(settings.log_level)
    logging.getLogger("eenet").info("settings %s", settings.model_dump_json())
    for folder in settings.bundle:
        load_bundle(folder)  # a damaged one ends here, before anything is started
    config = uvicorn.Config(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        http=HttpProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        timeout_graceful_shutdown=settings.drain_s,
    )
    server = DrainingServer(config)
    server.run()
    if not server.started:
        raise SystemExit(3)


if __name__ == "__main__":
    sys.exit(main())
