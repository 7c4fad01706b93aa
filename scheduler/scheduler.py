"""The fitted scheduler: a policy with its frontier, and its two files."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scheduler.baselines import MaxProbPolicy
from scheduler.eenet import EENetPolicy, ExitScorer
from scheduler.frontier import Frontier
from scheduler.policy import ExitPolicy
from scheduler.thresholds import ThresholdTable

FORMAT_VERSION = 1
FILES = ("scheduler.json", "scheduler.npz")


class Scheduler(NamedTuple):
    """A fitted policy and what it buys at every value of its parameter."""

    policy: ExitPolicy
    frontier: Frontier


def save_scheduler(scheduler: Scheduler, folder: Path) -> None:
    """Write `scheduler.json` (kind and sizes) and `scheduler.npz` (numbers) into a folder."""
    policy, frontier = scheduler
    if not isinstance(policy, MaxProbPolicy | EENetPolicy):
        raise TypeError(f"a {policy.kind!r} policy has no file format")
    arrays = {
        "parameters": frontier.parameters,
        "exit_rates": frontier.exit_rates,
        "expected_accuracy": frontier.expected_accuracy,
        "costs_ms": frontier.costs_ms,
        "table_parameters": policy.table.parameters,
        "table_thresholds": policy.table.thresholds,
    }
    if isinstance(policy, EENetPolicy):
        arrays |= {f"score_weights_{k}": psi for k, psi in enumerate(policy.scorer.weights)}
    np.savez_compressed(folder / FILES[1], allow_pickle=False, **arrays)
    head = {"format_version": FORMAT_VERSION, "policy": policy.kind, "num_exits": policy.num_exits}
    (folder / FILES[0]).write_text(json.dumps(head, indent=1) + "\n")


def load_scheduler(folder: Path) -> Scheduler:
    """Read what `save_scheduler` wrote.

    Raises:
        ValueError: If a file is of another version or policy, or does not hold what it should; the
            sentence names it.
    """
    path = folder / FILES[0]
    try:
        head = json.loads(path.read_text())
        version, kind, num_exits = head["format_version"], head["policy"], head["num_exits"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a scheduler description; build the bundle again"
        ) from error
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {version}, this program reads {FORMAT_VERSION}; build "
            f"the bundle again"
        )
    if kind not in ("maxprob", "eenet"):
        raise ValueError(f"{path} names the policy {kind!r}; this program knows maxprob and eenet")
    path = folder / FILES[1]
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            frontier = Frontier(
                arrays["parameters"],
                arrays["exit_rates"],
                arrays["expected_accuracy"],
                arrays["costs_ms"],
            )
            table = ThresholdTable(arrays["table_parameters"], arrays["table_thresholds"])
            weights = (
                tuple(arrays[f"score_weights_{k}"] for k in range(num_exits))
                if kind == "eenet"
                else ()
            )
    except Exception as error:  # numpy and zipfile raise a dozen types on a damaged archive
        raise ValueError(f"{path} cannot be read: {error}; build the bundle again") from error
    if table.thresholds.shape[1:] != (num_exits,) or len(frontier.costs_ms) != num_exits:
        raise ValueError(
            f"{path} and {FILES[0]} disagree about the number of exits; build the bundle again"
        )
    policy = EENetPolicy(ExitScorer(weights), table) if kind == "eenet" else MaxProbPolicy(table)
    return Scheduler(policy, frontier)
