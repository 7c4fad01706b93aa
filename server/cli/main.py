"""The `eenet` command: finds the module of a command, runs it and reports its errors."""

import argparse
import contextlib
import importlib
import json
import os
import resource
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, cast

from server import __version__
from server.shortage import MORE_MEMORY, shortage_of
from server.spelling import did_you_mean

EXAMPLES = """examples:
  eenet serve                                             the shipped bundles on port 8000
  eenet serve --bundle my-bundle --budget-ms 1.5
  eenet serve --model my-bert --dataset reviews.csv       attach exits, build, keep, serve
  eenet predict my-bundle photo.jpg folder-of-images      predictions without a server
  eenet info my-bundle                                    its exits, costs and accuracies
  eenet train --arch resnet56 --dataset cifar10_jpegs.npz --out runs/mine
  eenet attach --backbone my-bert --exits 3,6,9,12 --dataset reviews.csv --out runs/bert
  eenet attach --onnx model.onnx --dataset photos/ --out runs/onnx
  eenet import --onnx stages/ heads/ --dataset photos/ --out runs/given
  eenet import --triton repository/mine --dataset photos/ --out runs/mine
  eenet import model_best.pth.tar --arch resnet56_3 --classes 10 --out runs/published
  eenet build runs/mine --out my-bundle
  eenet cascade small large --out both                    two networks under one budget
  eenet build --model my_network:make --weights my.safetensors --dataset photos/ --out my-bundle
  eenet push my-bundle my-org/my-bundle
  eenet evaluate my-bundle --report report                which policy wins, and by how much
  eenet fit my-bundle --policy eenet
  eenet certify my-bundle --max-disagreement 0.01         the cheapest point that keeps a promise
  eenet profile my-bundle                                 cost of each exit on this machine
  eenet simulate my-bundle --costs 4,8,12 --free-rows 16  the engine on a device of other costs
  eenet loadtest http://127.0.0.1:8000 --rate 100         open-loop load on a running server
"""
# Module of each command. The text is here, so that `eenet --help` imports none of the modules.
COMMANDS = {
    "serve": ("serve", "Serve bundles over HTTP."),
    "predict": ("predict", "Classify images or texts without a server; prints JSON lines."),
    "info": ("info", "Describe a bundle: task, classes, exits, costs, accuracies, policy."),
    "train": ("train", "Train a multi-exit network, or resume its training."),
    "attach": ("attach", "Put exits onto a pretrained network and train them, or resume that."),
    "import": (
        "import_run",
        "Make a run of ONNX files, of an entry of a Triton repository, or of a checkpoint of the "
        "published EENet code.",
    ),
    "build": ("build", "Export, calibrate, profile and fit: turn a run into a bundle."),
    "cascade": (
        "cascade",
        "Join bundles, such as a small and a large network, into one under one budget.",
    ),
    "push": ("push", "Upload a bundle to the Hugging Face hub."),
    "profile": (
        "profile",
        "Measure the latency to each exit on this machine and write it into the bundle.",
    ),
    "simulate": (
        "simulate",
        "Simulate the engine on a device of another cost table, under synthetic or recorded "
        "traffic, with and without refilling batches between stages.",
    ),
    "loadtest": (
        "loadtest",
        "Load a running server with real inputs: rate, latency, exits, accuracy, budget.",
    ),
    "fit": (
        "fit",
        "Fit a policy to a bundle's calibration set or to the traffic that a server audited.",
    ),
    "evaluate": (
        "evaluate",
        "Compare exit policies on recorded predictions: a bundle's, or a file of any framework.",
    ),
    "certify": (
        "certify",
        "Certify on rows that nothing was fitted to how far a policy may differ from the whole "
        "network, and at what cost.",
    ),
}
LEAST_MEMORY_MIB = 288
INTERRUPTED = 130  # exit status of a shell's command that Ctrl-C ended


class Command(Protocol):
    """The module of one command."""

    EXAMPLE: str

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""

    def run(self, args: argparse.Namespace) -> object:
        """Run the command; the result is the document that a bare `--json` prints."""

    def interrupted(self, args: argparse.Namespace) -> str:
        """Say after Ctrl-C how to resume, or that nothing was written."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; an error that has a remedy is one sentence on stderr and exit status 2."""
    try:
        _check_memory()
        args = build_parser().parse_args(argv)
        return _run(args.command, args)
    except BrokenPipeError:  # `eenet predict ... | head`: the reader has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:  # while modules are imported
        return INTERRUPTED
    except (ValueError, OSError) as error:
        return _complain(shortage_of(error) or _sentence(error))
    except (MemoryError, RuntimeError) as error:
        if (shortage := shortage_of(error)) is None:
            raise
        return _complain(shortage)


def _check_memory() -> None:
    """Check that the libraries can be loaded: some end the process when they cannot.

    Raises:
        ValueError: If they cannot.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < LEAST_MEMORY_MIB * 2**20:
        raise ValueError(
            f"this process may use {limit >> 20} MiB of address space, and needs at least "
            f"{LEAST_MEMORY_MIB}; {MORE_MEMORY}"
        )


def _run(command: Command, args: argparse.Namespace) -> int:
    as_json = getattr(args, "json", None) is True  # a path names a file instead
    try:
        # Whatever else a command or a library prints must not end up among the JSON.
        with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
            document = command.run(args)
    except KeyboardInterrupt:
        print(f"\neenet: {command.interrupted(args)}", file=sys.stderr)
        return INTERRUPTED
    if as_json:
        print(json.dumps(document))
    return 0


def _sentence(error: Exception) -> str:
    if "pydantic" in sys.modules:  # else it is none of its errors
        from pydantic import ValidationError

        from server.problems import format_validation_error

        if isinstance(error, ValidationError):
            return f"bad setting {format_validation_error(error)}"
    return str(error)


def _complain(sentence: str) -> int:
    print(f"eenet: {sentence}", file=sys.stderr)
    return 2


class Parser(argparse.ArgumentParser):
    """A parser that suggests the option that was meant, and takes its options from a command.

    The module of a command is imported once the command is asked for.
    """

    module: str | None = None

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse; an unknown option ends the program with a suggestion."""
        given = list(sys.argv[1:] if args is None else args)
        if self.module is not None:
            command = cast(Command, importlib.import_module(f"server.cli.{self.module}"))
            self.epilog = f"example:\n  {command.EXAMPLE}"
            command.add_flags(self)
            self.set_defaults(command=command)
            self.module = None
        self._refuse_unknown(given)
        return super().parse_known_args(given, namespace)

    def _refuse_unknown(self, given: Sequence[str]) -> None:
        """Name an unknown option before a missing one, which it may have been meant for."""
        for word in given:
            if word == "--" or (self._subparsers is not None and not word.startswith("-")):
                return  # what follows are file names, or is for the command's own parser
            name = word.partition("=")[0]
            known = [each for each in self._option_string_actions if each.startswith("--")]
            is_option = name.startswith("--") and " " not in name
            if is_option and not any(each.startswith(name) for each in known):
                hint = did_you_mean(name, known) or f"; see {self.prog} --help"
                self.error(f"unknown option {name!r}{hint}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        choices: Iterable[Any] = action.choices or ()
        if action.choices is not None and value not in choices:
            names = [str(choice) for choice in choices]
            what = "command" if isinstance(action, argparse._SubParsersAction) else "choice"
            hint = did_you_mean(str(value), names) or f"; choose from {', '.join(names)}"
            raise argparse.ArgumentError(
                None if what == "command" else action, f"unknown {what} {str(value)!r}{hint}"
            )


def build_parser() -> Parser:
    """Make the parser of all commands."""
    parser = Parser(
        prog="eenet",
        description="Serve multi-exit networks under a latency budget, and make them.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"eenet {__version__}")
    commands: Callable[..., Parser] = parser.add_subparsers(
        required=True, metavar="COMMAND"
    ).add_parser
    for name, (module, text) in COMMANDS.items():
        added = commands(
            name,
            help=text,
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.module = module
    return parser


if __name__ == "__main__":
    sys.exit(main())
