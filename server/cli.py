"""The `eenet` command."""

import argparse
import dataclasses
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from pydantic import ValidationError

from models.bundle import load_bundle
from models.run import TrainConfig
from server.app import VERSION, create_app
from server.bodies import first_error
from server.lifecycle import DrainingServer
from server.settings import ENV_PREFIX, Settings, load_settings

EXAMPLES = """examples:
  eenet serve                                             the shipped bundle on port 8000
  eenet serve --bundle my-bundle --budget-ms 1.5
  eenet train --arch resnet56 --dataset cifar10_jpegs.npz --out runs/mine
  eenet build runs/mine --out my-bundle
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
    parser.add_argument("--version", action="version", version=f"eenet {VERSION}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_serve(commands)
    _add_train(commands)
    _add_build(commands)
    return parser


def _command(
    commands: Any, name: str, text: str, example: str, run: Callable[..., None]
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=text,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _add_serve(commands: Any) -> None:
    parser = _command(
        commands,
        "serve",
        "Serve bundles over HTTP.",
        "eenet serve --budget-ms 1.2 --window 500",
        _serve,
    )
    for name, field in Settings.model_fields.items():
        action = "append" if name == "bundle" else "store"
        default = "the shipped one" if name == "bundle" else field.default
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
    _log_to_stderr(settings.log_level)
    logging.getLogger("eenet").info("settings %s", settings.model_dump_json())
    for folder in settings.bundle:
        load_bundle(folder)  # a damaged one ends here, before anything is started
    config = uvicorn.Config(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=settings.drain_s,
    )
    server = DrainingServer(config)
    server.run()
    if not server.started:
        raise SystemExit(3)


def _add_train(commands: Any) -> None:
    example = "eenet train --arch resnet56 --exits 9,18 --dataset cifar10_jpegs.npz --out runs/mine"
    parser = _command(
        commands,
        "train",
        "Train a multi-exit network; goes on where it was stopped.",
        example,
        _train,
    )
    parser.add_argument(
        "--arch", required=True, help="resnet20, resnet32, resnet44, resnet56 or resnet110"
    )
    parser.add_argument(
        "--dataset",
        required=True,
        type=Path,
        help="an .npz of encoded images, or a folder train/CLASS, test/CLASS",
    )
    parser.add_argument("--out", required=True, type=Path, help="folder of the run")
    parser.add_argument(
        "--exits", default="9,18", help="blocks after which an exit stands, or none (default: 9,18)"
    )
    parser.add_argument(
        "--heads",
        default="32/2,64/2,96/1,128/2;64/2,128/2,128/1",
        help="3x3 convolutions of each early head, CHANNELS/STRIDE (default: %(default)s)",
    )
    parser.add_argument("--init", type=Path, help="safetensors of a plain network to start from")
    for name, kind, text in (
        ("calibration_size", int, "training images held out"),
        ("epochs", int, "passes over the data"),
        ("batch_size", int, "rows a step"),
        ("peak_lr", float, "highest learning rate"),
        ("weight_decay", float, "of SGD"),
        ("distill_weight", float, "alpha_KL, how much the last exit teaches the others"),
        ("seed", int, "of everything random"),
    ):
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(
            flag, type=kind, default=_train_default(name), help=f"{text} (default: %(default)s)"
        )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="train through torch.compile: a minute to start, 15 %% faster",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the reports as one JSON document last"
    )


def _train_default(name: str) -> Any:
    return next(field.default for field in dataclasses.fields(TrainConfig) if field.name == name)


def _train(args: argparse.Namespace) -> None:
    _need_training_extra()
    from server.train_command import train

    _log_to_stderr("warning")
    reports = train(args)
    if args.json:
        print(json.dumps([report._asdict() for report in reports]))


def _add_build(commands: Any) -> None:
    example = "eenet build runs/mine --out my-bundle && eenet serve --bundle my-bundle"
    parser = _command(
        commands,
        "build",
        "Export, calibrate, profile and fit: a run becomes a bundle.",
        example,
        _build,
    )
    parser.add_argument("folder", metavar="RUN", type=Path, help="folder of `eenet train`")
    parser.add_argument("--out", required=True, type=Path, help="folder of the bundle")
    parser.add_argument(
        "--name", help="the model's name in requests (default: the bundle folder's)"
    )
    parser.add_argument(
        "--dataset",
        type=Path,
        help="where the data set lies now (default: where it lay in training)",
    )
    parser.add_argument(
        "--policy",
        choices=("eenet", "maxprob"),
        default="eenet",
        help="scheduler (default: %(default)s)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the results as one JSON document last"
    )


def _build(args: argparse.Namespace) -> None:
    _need_training_extra()
    from server.build import build_bundle, load_run

    _log_to_stderr("warning")
    # The exporter speaks of libraries that are not needed and of its own inner changes.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")
    built = build_bundle(
        load_run(args.folder),
        args.out,
        name=args.name or args.out.resolve().name,
        dataset=args.dataset,
        policy=args.policy,
        say=lambda step: print(f"{step} ...", file=sys.stderr, flush=True),
    )
    accuracy = " ".join(f"{100 * share:.2f}" for share in built.exit_accuracy)
    print(
        f"{built.bundle.folder}: {built.bundle.manifest.num_exits} exits, test accuracy "
        f"{accuracy} %"
    )
    print(
        f"graphs and network differ by {built.disagreement:.1e} at most; default budget "
        f"{built.bundle.manifest.default_budget_ms} ms"
    )
    print("budget ms   cost ms   accuracy %   exit rates")
    for row in built.evaluations:
        rates = " ".join(f"{rate:.2f}" for rate in row.exit_rates)
        print(f"{row.budget_ms:9.3f} {row.cost_ms:9.3f} {100 * row.accuracy:12.2f}   {rates}")
    if args.json:
        evaluations = [row._asdict() for row in built.evaluations]
        print(
            json.dumps(
                {
                    "bundle": str(args.out),
                    "exit_accuracy": built.exit_accuracy,
                    "evaluations": evaluations,
                }
            )
        )


def _need_training_extra() -> None:
    try:
        import onnxscript  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"{error.name} is not installed; training and building need the extra: pip install "
            f"'.[train,cpu]'"
        ) from error


def _log_to_stderr(level: str) -> None:
    logging.basicConfig(
        level=level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )


if __name__ == "__main__":
    sys.exit(main())
