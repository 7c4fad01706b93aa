import json
from pathlib import Path

import numpy as np
import pytest

from models.stage_costs import StageCosts
from profiling.simulation.network import NetworkCosts, read_network_costs
from tests.bundles import variant_of

STAGES = StageCosts((1, 2), np.array([[3.0, 5.0], [2.0, 3.0], [1.0, 1.5]]))
HEADS = StageCosts((1, 2), np.array([[1.0, 1.5], [0.5, 0.5], [0.25, 0.25]]))


def test_a_network_to_an_exit_runs_the_head_of_that_exit_only() -> None:
    network = NetworkCosts(STAGES, HEADS)
    assert network.to_exit(0).stages_ms.tolist() == [[3.0, 5.0]]
    assert network.to_exit(2).stages_ms.tolist() == [[2.0, 3.5], [1.5, 2.5], [1.0, 1.5]]
    assert network.stages.stages_ms[0, 0] == 3.0  # as before
    plain = NetworkCosts.without_heads(STAGES)
    assert plain.to_exit(2).stages_ms.tolist() == STAGES.stages_ms.tolist()


def test_a_profile_holds_its_heads(shipped_bundle: Path) -> None:
    network = read_network_costs(variant_of(shipped_bundle).profile)
    assert network.heads.batch_sizes == network.stages.batch_sizes
    assert (network.heads.stages_ms > 0).all()
    assert (network.to_exit(2).stages_ms[:2] < network.stages.stages_ms[:2]).all()


def profile(tmp_path: Path, **more: object) -> Path:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(STAGES.to_json() | more))
    return path


def test_a_table_without_heads_has_none(tmp_path: Path) -> None:
    assert (read_network_costs(profile(tmp_path)).heads.stages_ms == 0).all()


@pytest.mark.parametrize(
    "latency_ms",
    [
        {"1": {"heads": [[0.1]] * 3}},
        {"1": {"heads": [[0.1]] * 3}, "2": {"heads": [[0.1]]}},
        {"1": {"heads": [[9.0]] * 3}, "2": {"heads": [[9.0]] * 3}},
        {"1": {"heads": [["a"]] * 3}, "2": {"heads": [[0.1]] * 3}},
    ],
)
def test_heads_that_do_not_fit_are_one_sentence(
    tmp_path: Path, latency_ms: dict[str, object]
) -> None:
    with pytest.raises(ValueError, match="has no times of its heads that fit its stages"):
        read_network_costs(profile(tmp_path, latency_ms=latency_ms))
