import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from scheduler.policy import ExitScores, exits_taken, replay, score_all
from scheduler.stopping import NUM_FEATURES, TINY, StoppingPolicy, stopping_features

Array = NDArray[np.float64]

PRICES = np.array([0.0, 0.1, 0.4])
STEPS_MS = np.array([1.0, 2.0])


def random_policy(classes: int = 4, seed: int = 0) -> StoppingPolicy:
    """Three exits at prices PRICES, with weights of no meaning."""
    rng = np.random.default_rng(seed)
    widths = (1 + len(PRICES), 1 + len(PRICES), 1)
    return StoppingPolicy(
        PRICES,
        STEPS_MS,
        tuple(0.3 * rng.normal(size=(NUM_FEATURES, width)) for width in widths),
        tuple(rng.normal(size=(classes, width)) for width in widths),
    )


def random_log_probs(rows: int, classes: int = 4, seed: int = 0) -> Array:
    logits = 2 * np.random.default_rng(seed).normal(size=(3, rows, classes))
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def scored(scores: Array, continuation_values: Array) -> ExitScores:
    return ExitScores(scores, np.empty((len(scores), 0)), continuation_values)


def continuation(continuation_values: list[float], price: float, exit: int = 0) -> float:
    """The threshold that a row with this continuation_values meets at a price."""
    row = scored(np.zeros(1), np.array([continuation_values]))
    return float(random_policy().decide(exit, row, np.array([price])).thresholds[0])


def logit(chance: float) -> float:
    return float(np.log((chance + TINY) / (1 + TINY - chance)))


# Features


def test_features_of_the_first_exit_are_those_of_its_probabilities_alone() -> None:
    probs = np.array([[0.2, 0.7, 0.1]])
    features, answers, history = stopping_features(0, np.log(probs), np.zeros((1, 3)))
    entropy = 1 + (probs * np.log(probs)).sum() / np.log(3)
    assert features == pytest.approx(np.array([[1, logit(0.7), 0.7, entropy, 0.5, 0]]))
    assert answers.tolist() == [1]
    assert history == pytest.approx(probs)


def test_later_exits_read_what_earlier_ones_gave_the_answer_of_now() -> None:
    first, second, third = np.array([[0.9, 0.1]]), np.array([[0.6, 0.4]]), np.array([[0.3, 0.7]])
    _, _, history = stopping_features(0, np.log(first), np.zeros((1, 2)))
    features, _, history = stopping_features(1, np.log(second), history)
    assert features[0, 5] == pytest.approx(logit(0.9))
    features, _, history = stopping_features(2, np.log(third), history)
    assert features[0, 5] == pytest.approx(logit((0.1 + 0.4) / 2))
    assert history == pytest.approx(np.array([[1.8, 1.2]]))


def test_features_of_certain_and_of_undecided_rows_are_finite() -> None:
    probs = np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [1 / 3, 1 / 3, 1 / 3]])
    log_probs = np.maximum(np.log(np.maximum(probs, 1e-45)), -100.0)
    features, _, history = stopping_features(0, log_probs, np.zeros((3, 3)))
    assert np.isfinite(features).all()
    assert features[:, 4] == pytest.approx([1, 0, 0])
    features, _, _ = stopping_features(1, log_probs[::-1], history)
    assert np.isfinite(features).all()


def test_features_leave_the_history_given_as_it_was() -> None:
    history = np.zeros((5, 4))
    stopping_features(0, random_log_probs(5)[0], history)
    assert not history.any()


def test_features_of_half_precision_logarithms_are_double_precision() -> None:
    log_probs = random_log_probs(5)[0].astype(np.float16)
    features, _, history = stopping_features(0, log_probs, np.zeros((5, 4)))
    assert features.dtype == history.dtype == np.float64
    assert features[:, 4].max() < 1


# Scores


def test_score_and_outlook_are_logistic_in_features_and_answer() -> None:
    policy, log_probs = random_policy(), random_log_probs(6)[0]
    row = policy.score(0, log_probs, policy.start(6))
    features, answers, _ = stopping_features(0, log_probs, np.zeros((6, 4)))
    for n in range(6):
        logits = features[n] @ policy.weights[0] + policy.class_offsets[0][answers[n]]
        expected = 1 / (1 + np.exp(-logits))
        assert row.scores[n] == pytest.approx(expected[0])
        assert row.continuation_values[n] == pytest.approx(expected[1:])


def test_the_last_exit_has_a_score_and_no_outlook() -> None:
    policy = random_policy()
    last = policy.score(2, random_log_probs(5)[2], np.ones((5, 4)))
    assert last.scores.shape == (5,)
    assert last.continuation_values.shape == (5, 0)


def test_scores_do_not_depend_on_the_batch() -> None:
    policy, log_probs = random_policy(), random_log_probs(20)
    together = replay(policy, log_probs)
    for row in (0, 7, 19):
        alone = replay(policy, log_probs[:, row : row + 1])
        for all_rows, one in zip(together, alone, strict=True):
            assert one.scores == pytest.approx(all_rows.scores[row], rel=1e-12)
            assert one.continuation_values[0] == pytest.approx(
                all_rows.continuation_values[row], rel=1e-12
            )


def test_logits_far_below_zero_are_a_chance_of_zero_without_a_warning() -> None:
    policy = random_policy()
    weights = tuple(each - 1e4 * np.eye(NUM_FEATURES)[:, :1] for each in policy.weights)
    steep = StoppingPolicy(PRICES, STEPS_MS, weights, policy.class_offsets)
    assert score_all(steep, random_log_probs(5)).max() == 0


# Decisions


@pytest.mark.parametrize(
    ("price", "ahead"), [(0.0, 0.9), (0.05, 0.85), (0.1, 0.8), (0.2, 0.7), (0.4, 0.5)]
)
def test_the_value_ahead_is_interpolated_between_prices(price: float, ahead: float) -> None:
    continuation_values = [0.9, 0.8, 0.5]
    assert continuation(continuation_values, price) == pytest.approx(ahead - price * STEPS_MS[0])
    assert continuation(continuation_values, price, exit=1) == pytest.approx(
        ahead - price * STEPS_MS[1]
    )


@pytest.mark.parametrize(("price", "ahead"), [(-3.0, 0.9), (-0.01, 0.9), (0.41, 0.5), (9.0, 0.5)])
def test_beyond_the_prices_the_value_ahead_stays_and_the_price_of_the_step_does_not(
    price: float, ahead: float
) -> None:
    assert continuation([0.9, 0.8, 0.5], price) == pytest.approx(ahead - price * STEPS_MS[0])


def test_a_row_leaves_once_its_answer_is_worth_what_going_on_promises() -> None:
    rows = scored(np.array([0.69, 0.7, 0.71]), np.full((3, 3), 0.8))
    decision = random_policy().decide(0, rows, np.array([0.1]))
    assert decision.thresholds == pytest.approx([0.7, 0.7, 0.7])
    assert (decision.leave[0], decision.leave[2]) == (False, True)


def test_a_hopeless_row_leaves_before_a_surer_one_that_going_on_helps() -> None:
    hopeless, helped = (0.2, [0.21, 0.21, 0.21]), (0.7, [0.95, 0.93, 0.9])
    rows = scored(np.array([hopeless[0], helped[0]]), np.array([hopeless[1], helped[1]]))
    assert random_policy().decide(0, rows, np.array([0.1])).leave.tolist() == [True, False]


prices = st.floats(-1, 1) | st.sampled_from([-2.0, 2.0, *PRICES.tolist()])


@given(st.lists(prices, min_size=1, max_size=12), st.integers(0, 1), st.integers(0, 99))
def test_rows_with_prices_of_their_own_decide_as_alone(
    own: list[float], exit: int, seed: int
) -> None:
    rng, policy = np.random.default_rng(seed), random_policy()
    rows = scored(rng.uniform(size=len(own)), rng.uniform(size=(len(own), 3)))
    together = policy.decide(exit, rows, np.array(own))
    for n, price in enumerate(own):
        alone = policy.decide(
            exit,
            scored(rows.scores[n : n + 1], rows.continuation_values[n : n + 1]),
            np.array([price]),
        )
        assert together.leave[n] == alone.leave[0]
        assert together.thresholds[n] == alone.thresholds[0]


@given(prices, prices, st.integers(0, 1), st.integers(0, 99))
def test_a_lower_price_never_lets_a_row_go_that_a_higher_one_keeps(
    one: float, other: float, exit: int, seed: int
) -> None:
    """Where the value ahead falls with the price, as that of optimal stopping does."""
    rng, policy = np.random.default_rng(seed), random_policy()
    continuation_values = -np.sort(-rng.uniform(size=(30, 3)), axis=1)
    rows = scored(rng.uniform(size=30), continuation_values)
    cheap, dear = (policy.decide(exit, rows, np.array([price])) for price in sorted((one, other)))
    assert (dear.leave >= cheap.leave).all()
    assert (dear.thresholds <= cheap.thresholds).all()


@given(st.integers(0, 99), st.integers(0, 1))
def test_whatever_rows_promise_run_on_keeps_them_and_stop_at_once_lets_them_go(
    seed: int, exit: int
) -> None:
    rng, policy = np.random.default_rng(seed), random_policy()
    # Certain to be right now and never later, and the other way round, among them.
    scores = np.r_[1.0, 0.0, rng.uniform(size=8)]
    rows = scored(scores, np.c_[1 - scores, 1 - scores, 1 - scores])
    assert not policy.decide(exit, rows, np.array([policy.never_exit_parameter])).leave.any()
    if exit == 0:
        assert policy.decide(0, rows, np.array([policy.exit_at_first_parameter])).leave.all()


def test_everyone_leaves_at_the_last_exit_at_any_price() -> None:
    policy = random_policy()
    rows = scored(np.array([0.0, 0.5, 1.0]), np.empty((3, 0)))
    for price in (policy.never_exit_parameter, 0.0, policy.exit_at_first_parameter):
        decision = policy.decide(2, rows, np.array([price]))
        assert decision.leave.all()
        assert decision.thresholds.tolist() == [-np.inf] * 3


def test_the_two_extreme_prices_send_all_to_the_two_ends() -> None:
    policy = random_policy()
    replayed = replay(policy, random_log_probs(50))
    assert set(exits_taken(policy, replayed, policy.never_exit_parameter)) == {2}
    assert set(exits_taken(policy, replayed, policy.exit_at_first_parameter)) == {0}


def test_policy_tells_its_kind_and_size_and_that_thresholds_are_each_rows_own() -> None:
    policy = random_policy()
    assert (policy.kind, policy.num_exits) == ("stopping", 3)
    assert policy.start(5).shape == (5, 4)
    assert policy.thresholds(0.1) is None
