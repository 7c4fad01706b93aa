"""The table of policies. A new policy is one new file and one line here (docs/extending.md)."""

from collections.abc import Mapping
from typing import Any

from scheduler.baselines import ENTROPY, ENTROPY_OPT, MAXPROB, MAXPROB_OPT, PATIENCE
from scheduler.eenet import EENET
from scheduler.policy import PolicyKind
from scheduler.stopping import STOPPING

POLICIES: Mapping[str, PolicyKind[Any]] = {
    kind.name: kind
    for kind in (
        STOPPING,
        EENET,
        MAXPROB,
        ENTROPY,
        PATIENCE,
        MAXPROB_OPT,
        ENTROPY_OPT,
    )
}
DEFAULT_POLICY = STOPPING.name


def describe_policies() -> str:
    """List the policies and when a row leaves under each, for `--help`."""
    return "; ".join(f"{kind.name}: {kind.summary}" for kind in POLICIES.values())
