import math

import numpy as np

from scheduler.baselines import ConfidencePolicy, PatiencePolicy
from scheduler.thresholds import ThresholdTable
from server.engine.active_policy import ActivePolicy

TABLE = ThresholdTable(
    np.array([1.0, 2.0]),
    np.array([[math.inf, 0.8, -math.inf], [math.inf, math.inf, -math.inf]]),
)


def test_the_heads_that_are_needed_follow_the_parameter() -> None:
    in_force = ActivePolicy(ConfidencePolicy(TABLE, "maxprob"), 1.0)
    assert in_force.snapshot.needs == (False, True, True)
    in_force.set(2.0)
    assert in_force.snapshot.parameter == 2.0 and in_force.snapshot.needs == (False, False, True)


def test_what_was_read_is_not_changed_by_a_later_move() -> None:
    in_force = ActivePolicy(ConfidencePolicy(TABLE, "maxprob"), 1.0)
    read = in_force.snapshot
    in_force.set(2.0)
    assert read.parameter == 1.0 and read.needs == (False, True, True)


def test_setting_what_is_in_force_makes_nothing_new() -> None:
    in_force = ActivePolicy(ConfidencePolicy(TABLE, "maxprob"), 1.0)
    read = in_force.snapshot
    in_force.set(1.0)
    assert in_force.snapshot is read


def test_policies_with_a_history_remember() -> None:
    assert not ActivePolicy(ConfidencePolicy(TABLE, "maxprob"), 1.0).has_history
    assert ActivePolicy(PatiencePolicy(TABLE), 1.0).has_history


def test_what_is_in_force_depends_on_how_many_wait() -> None:
    in_force = ActivePolicy(ConfidencePolicy(TABLE, "maxprob"), 2.0)
    assert in_force.at(7.0) is in_force.snapshot and not in_force.heeds_queue
    in_force.set(2.0, [2.0, 1.0])
    assert in_force.heeds_queue
    assert [in_force.at(waiting).parameter for waiting in (0, 0.9, 1, 1.9, 2, 99)] == [
        2.0, 2.0, 2.0, 2.0, 1.0, 1.0,
    ]  # fmt: skip
    assert in_force.at(5.0).needs == (False, True, True)
    assert in_force.at(5.0) is in_force.at(2.0)
    in_force.set(1.0)
    assert in_force.at(5.0).parameter == 1.0 and not in_force.heeds_queue
