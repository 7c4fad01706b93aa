"""`eenet serve --model`: from a pretrained encoder and a dataset to a bundle, once."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from models.bundle import MANIFEST
from server import __version__
from server.cli.options import DATA_FLAGS, add_data
from server.pipeline.content_key import content_key, hash_of
from server.pipeline.hub import (
    SCHEME,
    Address,
    check_safetensors,
    is_name,
    parse_address,
)
from server.pipeline.hub_process import fetch_bundle, fetch_model
from server.settings import CACHE_VARIABLE

NUM_EXITS = 4
LAYERS = ("num_hidden_layers", "n_layers")
CONFIG = "config.json"


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a model that becomes a bundle."""
    group = parser.add_argument_group(
        "a model of Hugging Face (docs/own-models.md)",
        "--model and --dataset in place of --bundle: exits are attached, the bundle is built and "
        "kept, and a second start serves it at once",
    )
    group.add_argument("--model", metavar="ORG/NAME|FOLDER", help="encoder of transformers")
    group.add_argument("--revision", help="branch, tag or commit of --model on the hub")
    group.add_argument(
        "--cache",
        type=Path,
        help=f"folder of bundles that were built or downloaded (default: ~/.cache/eenet); "
        f"${CACHE_VARIABLE}",
    )
    group.add_argument("--exits", help="layers with an exit (default: four, evenly spaced)")
    group.add_argument("--epochs", type=int, help="passes over the dataset (default: 3)")
    group.add_argument("--peak-lr", type=float, help="highest learning rate (default: 5e-5)")
    group.add_argument("--max-tokens", type=int, help="most tokens of a text (default: 128)")
    add_data(group, required=False)


def cache_of(args: argparse.Namespace, environ: Mapping[str, str]) -> Path:
    """Return the folder of what was built or downloaded."""
    given = args.cache or environ.get(CACHE_VARIABLE)
    return Path(given).expanduser() if given else Path.home() / ".cache" / "eenet"


def bundle_of(path: Path, cache: Path) -> Path:
    """Return the folder of a bundle that may be an address of the hub."""
    # A path has lost the second slash.
    address = re.sub(r"^hf:/+", SCHEME, str(path))
    if not address.startswith(SCHEME):
        return path
    log_line(f"looking for {address}")
    return fetch_bundle(parse_address(address), cache)


def bundle_of_model(args: argparse.Namespace, cache: Path) -> Path:
    """Return the bundle of --model and --dataset; build it unless it is kept in the cache.

    Raises:
        ValueError: If model or dataset cannot be used, or a step of the build fails.
    """
    if args.dataset is None:
        raise ValueError("--model needs --dataset, on which exits are trained and calibrated")
    folder, model_key = _model(args)
    dataset = Path(args.dataset)
    given = {name: value for name, value in _given(args).items() if name != "dataset"}
    key = content_key(
        model=model_key,
        dataset=hash_of(dataset) if dataset.exists() else args.dataset,
        settings={name: str(value) for name, value in given.items()},
        version=__version__,
    )
    name = re.sub(r"[^A-Za-z0-9._-]", "-", Path(args.model.rstrip("/")).name)[:48]
    home = cache / "models" / f"{name}-{key[:12]}"
    bundle = home / "bundle"
    if not (bundle / MANIFEST).is_file():
        with _alone(home):
            if not (bundle / MANIFEST).is_file():
                _build(args, folder, home, name)
    log_line(f"serving {bundle}")
    return bundle


def log_line(text: str) -> None:
    """Print a line of progress."""
    print(text, file=sys.stderr, flush=True)


def _model(args: argparse.Namespace) -> tuple[Path, str]:
    """The model's folder, and what identifies its content."""
    folder = Path(args.model)
    if folder.is_dir():
        if args.revision is not None:
            raise ValueError(f"--revision is of models on the hub; {folder} is a folder")
        check_safetensors(folder, str(folder))
        return folder, hash_of(folder)
    if not is_name(args.model):
        raise ValueError(
            f"--model is {args.model!r}, which is neither a folder nor ORG/NAME on the hub"
        )
    log_line(f"looking for {args.model} on the hub")
    folder = fetch_model(Address(args.model, args.revision))
    return folder, folder.name  # the commit


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """The flags of dataset and training that were given."""
    names = (*DATA_FLAGS, "exits", "epochs", "peak_lr", "max_tokens")
    values = {name: getattr(args, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _build(args: argparse.Namespace, folder: Path, home: Path, name: str) -> None:
    given = {"exits": _exits(folder), **_given(args)}
    flags = list[str]()
    for flag, value in given.items():
        flags += [f"--{flag.replace('_', '-')}", *([] if value is True else [str(value)])]
    run = home / "run"
    log_line(f"attaching exits after layers {given['exits']} to {args.model}, in {run}")
    _command("attach", "--backbone", str(folder), *flags, "--out", str(run))
    log_line("building the bundle")
    _command("build", str(run), "--out", str(home / "bundle"), "--name", name)


def _command(*words: str) -> None:
    """Run a command in a process of its own: the server needs no torch, and gets its memory back.

    Raises:
        ValueError: If it fails; it has said why.
    """
    ended = subprocess.run([sys.executable, "-m", "server.cli.main", *words], check=False)
    if ended.returncode:
        raise ValueError(f"eenet {words[0]} failed, as the lines above say; nothing is served")


def _exits(folder: Path) -> str:
    """Four exits at equal distances, by the number of layers in a model's configuration."""
    places = [folder / CONFIG, *sorted(folder.glob(f"*/{CONFIG}"))]
    values = [json.loads(place.read_text()) for place in places if place.is_file()]
    counts = [each[name] for each in values for name in LAYERS if isinstance(each.get(name), int)]
    if not counts:
        raise ValueError(
            f"the config.json of {folder} does not say how many layers the model has; give --exits"
        )
    layers = counts[0]
    ends = {max(1, round(layers * k / NUM_EXITS)) for k in range(1, NUM_EXITS + 1)}
    return ",".join(map(str, sorted(ends)))


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Hold the folder, so that two servers that start together build once."""
    home.mkdir(parents=True, exist_ok=True)
    lock = os.open(home / "lock", os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
