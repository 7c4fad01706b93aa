"""The fitted scheduler: a policy with its frontier and its combiner, and its two files."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, get_args

import numpy as np

from scheduler.combiner import OWN_OUTPUTS, Combiner
from scheduler.frontier import Frontier, Reference
from scheduler.policies import POLICIES
from scheduler.policy import ExitPolicy

FORMAT_VERSION = 2
COMBINED_VERSION = 3  # with a combiner, without which the policy would read the wrong numbers
FILES = ("scheduler.json", "scheduler.npz")


class Scheduler(NamedTuple):
    """A fitted policy, what to expect of it, and what it reads.

    Attributes:
        policy: Decides which rows leave; it reads combined outputs.
        frontier: Expected cost and accuracy at every parameter.
        combiner: Turns the outputs of the heads into the answers of the exits.
    """

    policy: ExitPolicy
    frontier: Frontier
    combiner: Combiner = OWN_OUTPUTS


def save_scheduler(scheduler: Scheduler, folder: Path) -> None:
    """Write `scheduler.json` (kind and sizes) and `scheduler.npz` (numbers) into a folder."""
    head, numbers = dump_scheduler(scheduler)
    (folder / FILES[1]).write_bytes(numbers)
    (folder / FILES[0]).write_text(json.dumps(head, indent=1) + "\n")


def dump_scheduler(scheduler: Scheduler) -> tuple[dict[str, Any], bytes]:
    """Return the contents of a scheduler's two files."""
    policy, frontier, combiner = scheduler
    arrays: dict[str, Any] = {
        "parameters": frontier.parameters,
        "exit_rates": frontier.exit_rates,
        "expected_accuracy": frontier.expected_accuracy,
        "costs_ms": frontier.costs_ms,
    }
    arrays |= POLICIES[policy.kind].arrays(policy) | combiner.arrays()
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **arrays)
    version = FORMAT_VERSION if combiner.empty else COMBINED_VERSION
    head = {"format_version": version, "policy": policy.kind, "num_exits": policy.num_exits}
    if frontier.reference != "labels":
        head["reference"] = frontier.reference
    if frontier.label_sets:
        head["label_sets"] = True
    return head, file.getvalue()


def parse_scheduler(head: Mapping[str, Any], numbers: IO[bytes]) -> Scheduler:
    """Read the contents that `dump_scheduler` returned.

    Raises:
        Exception: Of any kind, where they are damaged; numpy and zipfile raise a dozen types.
    """
    reference = head.get("reference", "labels")
    if reference not in get_args(Reference):
        raise ValueError(f"the reference {reference!r} is none of {', '.join(get_args(Reference))}")
    with np.load(numbers, allow_pickle=False) as arrays:
        frontier = Frontier(
            arrays["parameters"],
            arrays["exit_rates"],
            arrays["expected_accuracy"],
            arrays["costs_ms"],
            reference,
            bool(head.get("label_sets", False)),
        )
        num_exits = int(head["num_exits"])
        policy: ExitPolicy = POLICIES[head["policy"]].load(arrays, num_exits)
        return Scheduler(policy, frontier, Combiner.load(arrays, num_exits))


def load_scheduler(folder: Path) -> Scheduler:
    """Read the files that `save_scheduler` wrote.

    Raises:
        ValueError: If a file is damaged, has another format version or names an unknown policy; the
            message names the file.
    """
    path = folder / FILES[0]
    try:
        head = json.loads(path.read_text())
        version, kind, num_exits = head["format_version"], head["policy"], int(head["num_exits"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a scheduler description; build the bundle again"
        ) from error
    if version not in (FORMAT_VERSION, COMBINED_VERSION):
        raise ValueError(
            f"{path} has format version {version}, this program reads {FORMAT_VERSION} and "
            f"{COMBINED_VERSION}; fit the bundle again"
        )
    if kind not in POLICIES:
        raise ValueError(
            f"{path} names the policy {kind!r}; this program knows {', '.join(POLICIES)}"
        )
    path = folder / FILES[1]
    try:
        with path.open("rb") as file:
            scheduler = parse_scheduler(head, file)
    except Exception as error:  # numpy and zipfile raise a dozen types on a damaged archive
        raise ValueError(f"{path} cannot be read: {error}; build the bundle again") from error
    of_files = scheduler.policy.num_exits, len(scheduler.frontier.costs_ms)
    if of_files != (num_exits, num_exits):
        raise ValueError(
            f"{path} and {FILES[0]} disagree about the number of exits; build the bundle again"
        )
    return scheduler
