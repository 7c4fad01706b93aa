"""The fitted scheduler: a policy with its frontier, and its two files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scheduler.baselines import ConfidencePolicy, PatiencePolicy
from scheduler.eenet import EENetPolicy, ExitScorer
from scheduler.frontier import Frontier
from scheduler.policy import ExitPolicy
from scheduler.stopping import StoppingPolicy
from scheduler.thresholds import ThresholdPolicy, ThresholdTable

FORMAT_VERSION = 2
FILES = ("scheduler.json", "scheduler.npz")
POLICIES = (
    "stopping", "eenet", "maxprob", "entropy", "patience", "maxprob-opt", "entropy-opt",
)  # fmt: skip
DEFAULT_POLICY = "stopping"


class Scheduler(NamedTuple):
    """A fitted policy and what it buys at every value of its parameter."""

    policy: ExitPolicy
    frontier: Frontier


def save_scheduler(scheduler: Scheduler, folder: Path) -> None:
    """Write `scheduler.json` (kind and sizes) and `scheduler.npz` (numbers) into a folder."""
    policy, frontier = scheduler
    arrays: dict[str, Any] = {
        "parameters": frontier.parameters,
        "exit_rates": frontier.exit_rates,
        "expected_accuracy": frontier.expected_accuracy,
        "costs_ms": frontier.costs_ms,
    } | _policy_arrays(policy)
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
        version, kind, num_exits = head["format_version"], head["policy"], int(head["num_exits"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a scheduler description; build the bundle again"
        ) from error
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {version}, this program reads {FORMAT_VERSION}; fit the "
            f"bundle again"
        )
    if kind not in POLICIES:
        raise ValueError(
            f"{path} names the policy {kind!r}; this program knows {', '.join(POLICIES)}"
        )
    path = folder / FILES[1]
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            frontier = Frontier(
                arrays["parameters"],
                arrays["exit_rates"],
                arrays["expected_accuracy"],
                arrays["costs_ms"],
            )
            policy = _policy_of(kind, num_exits, arrays)
    except Exception as error:  # numpy and zipfile raise a dozen types on a damaged archive
        raise ValueError(f"{path} cannot be read: {error}; build the bundle again") from error
    if (policy.num_exits, len(frontier.costs_ms)) != (num_exits, num_exits):
        raise ValueError(
            f"{path} and {FILES[0]} disagree about the number of exits; build the bundle again"
        )
    return Scheduler(policy, frontier)


def _policy_arrays(policy: ExitPolicy) -> dict[str, Any]:
    arrays: dict[str, Any] = {}
    if isinstance(policy, ThresholdPolicy):
        arrays["table_parameters"] = policy.table.parameters
        arrays["table_thresholds"] = policy.table.thresholds
    if isinstance(policy, EENetPolicy):
        arrays |= {f"score_weights_{k}": psi for k, psi in enumerate(policy.scorer.weights)}
    if isinstance(policy, StoppingPolicy):
        arrays |= {"prices": policy.prices, "steps_ms": policy.steps_ms}
        arrays |= {f"weights_{k}": weights for k, weights in enumerate(policy.weights)}
        arrays |= {f"class_offsets_{k}": each for k, each in enumerate(policy.class_offsets)}
    return arrays


def _policy_of(kind: str, num_exits: int, arrays: Mapping[str, Any]) -> ExitPolicy:
    def each(name: str) -> tuple[Any, ...]:
        return tuple(arrays[f"{name}_{k}"] for k in range(num_exits))

    if kind == "stopping":
        return StoppingPolicy(
            arrays["prices"], arrays["steps_ms"], each("weights"), each("class_offsets")
        )
    table = ThresholdTable(arrays["table_parameters"], arrays["table_thresholds"])
    if kind == "eenet":
        return EENetPolicy(table, ExitScorer(each("score_weights")))
    if kind == "patience":
        return PatiencePolicy(table)
    return ConfidencePolicy(table, kind)
