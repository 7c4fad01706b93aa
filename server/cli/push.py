"""`eenet push`: uploads a bundle to the Hugging Face hub."""

import argparse
from pathlib import Path
from typing import Any

from models.bundle import load_bundle
from server.cli.options import add_json

EXAMPLE = "eenet push my-bundle my-org/my-bundle && eenet serve --bundle hf://my-org/my-bundle"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("folder", metavar="BUNDLE", type=Path, help="folder of the bundle")
    parser.add_argument("name", metavar="ORG/NAME", help="repository; it is made if there is none")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--revision", help="branch to upload to (default: main)")
    add_json(parser, "what was uploaded")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Upload the bundle once its files are verified."""
    from server.pipeline.hub import push_bundle

    bundle = load_bundle(args.folder)
    commit = push_bundle(bundle, args.name, private=args.private, revision=args.revision)
    print(f"{args.folder} is {args.name}@{commit}; serve it with")
    print(f"eenet serve --bundle hf://{args.name}@{commit}")
    return {"name": args.name, "commit": commit}


def interrupted(args: argparse.Namespace) -> str:
    """Sentence after Ctrl-C."""
    return f"stopped; {args.name} may lack files: the same command uploads what is missing"
