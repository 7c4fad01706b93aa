import timeit

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from scheduler.combiner import SMALLEST_FACTOR, SMALLEST_LOG, Combiner
from tests.combiners import EXITS, FORMS, SEEDS, random_combiner, random_log_probs

Array = NDArray[np.float64]


def by_definition(weights: Array | None, logs: Array, own: Array) -> Array:
    """One row (C,) of the outputs (J, C) by the formula of the module, term for term."""
    if weights is None:
        return own
    logs = np.maximum(logs, SMALLEST_LOG)
    classes = logs.shape[1]
    if weights.ndim == 1:
        logits = sum(power * each for power, each in zip(weights, logs, strict=True))
    else:
        logits = weights[0].copy()
        rest = iter(weights[1:])
        for log in logs.ravel():
            logits += log * next(rest)
        for log in logs.ravel():
            logits += np.exp(log) * next(rest)
        own = np.maximum(logs[-1], SMALLEST_FACTOR)
        if len(weights) > 1 + 2 * logs.size:
            for first in range(classes):
                for second in range(first, classes):
                    logits += own[first] * own[second] * next(rest)
        assert next(rest, None) is None
    return np.asarray(logits - np.logaddexp.reduce(logits))


def run(combiner: Combiner, log_probs: Array) -> Array:
    """All rows in one batch through all exits."""
    memory, found = combiner.start(log_probs.shape[1]), []
    for exit, outputs in enumerate(log_probs):
        memory = combiner.remember(exit, outputs, memory)
        found.append(combiner.combine(exit, outputs, memory))
    return np.stack(found)


@given(FORMS, st.integers(2, 12), st.integers(1, 9), SEEDS)
def test_the_answers_are_those_of_the_formula(
    forms: list[str], classes: int, rows: int, seed: int
) -> None:
    combiner = random_combiner(forms, classes, seed)
    log_probs = random_log_probs(rows, classes, seed)
    found = combiner.combine_all(log_probs)
    for exit in range(EXITS):
        for row in range(rows):
            seen = log_probs[: exit + 1, row]
            expected = by_definition(combiner.weights[exit], seen, log_probs[exit, row])
            assert found[exit, row] == pytest.approx(expected, abs=1e-9)


@given(FORMS, SEEDS, st.data())
def test_any_split_into_batches_at_any_exit_gives_the_offline_answers(
    forms: list[str], seed: int, data: st.DataObject
) -> None:
    combiner, rows = random_combiner(forms, 4, seed), 7
    log_probs = random_log_probs(rows, 4, seed)
    expected = combiner.combine_all(log_probs)
    memories = list(combiner.start(rows)[:, None])
    for exit in range(EXITS):
        order = data.draw(st.permutations(range(rows)))
        cuts = data.draw(st.sets(st.integers(1, rows - 1)))
        for batch in np.split(np.array(order), sorted(cuts)):
            memory = np.concatenate([memories[row] for row in batch])
            memory = combiner.remember(exit, log_probs[exit, batch], memory)
            combined = combiner.combine(exit, log_probs[exit, batch], memory)
            assert combined == pytest.approx(expected[exit, batch], abs=1e-6)
            for row, each in zip(batch, memory, strict=True):
                memories[row] = each[None]


@given(FORMS, SEEDS)
def test_rows_do_not_influence_each_other(forms: list[str], seed: int) -> None:
    combiner = random_combiner(forms, 5, seed)
    log_probs = random_log_probs(6, 5, seed)
    changed = log_probs.copy()
    changed[:, 1:] = random_log_probs(5, 5, seed + 1)
    assert run(combiner, changed)[:, 0] == pytest.approx(run(combiner, log_probs)[:, 0], abs=1e-12)


@given(FORMS, st.sampled_from([2, 10, 65]), SEEDS)
@settings(max_examples=50)
def test_one_row_is_combined_like_a_row_of_many(forms: list[str], classes: int, seed: int) -> None:
    combiner = random_combiner(forms, classes, seed)
    log_probs = random_log_probs(1, classes, seed)
    alone, among = run(combiner, log_probs), run(combiner, np.repeat(log_probs, 2, 1))
    assert alone[:, 0] == pytest.approx(among[:, 0], abs=1e-6)


@given(FORMS, st.sampled_from([0.0, 1.0, 100.0]), st.integers(1, 3), SEEDS)
def test_answers_are_finite_and_sum_to_1(
    forms: list[str], spread: float, rows: int, seed: int
) -> None:
    log_probs = random_log_probs(rows, 5, seed, spread).clip(-100, 0)
    found = random_combiner(forms, 5, seed).combine_all(log_probs)
    assert np.isfinite(found).all()
    assert np.exp(found).sum(-1) == pytest.approx(np.ones((EXITS, rows)), abs=1e-6)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(np.float16, np.float32), (np.float32, np.float32), (np.float64, np.float64)],
)
def test_answers_are_in_single_precision_at_least(
    rows: int, dtype: type[np.floating], expected: type[np.floating]
) -> None:
    combiner = random_combiner(["powers", "powers", "both"], 4)
    log_probs = random_log_probs(rows, 4).astype(dtype)
    assert combiner.combine_all(log_probs).dtype == expected
    assert run(combiner, log_probs).dtype == expected


def test_many_rows_are_combined_in_chunks_like_few(monkeypatch: pytest.MonkeyPatch) -> None:
    combiner, log_probs = (
        random_combiner(["powers", "both", "products"], 4),
        random_log_probs(10, 4),
    )
    whole = combiner.combine_all(log_probs)
    monkeypatch.setattr("scheduler.combiner.CHUNK_ROWS", 4)
    assert combiner.combine_all(log_probs) == pytest.approx(whole, abs=1e-9)


# What needs what


@pytest.mark.parametrize(
    ("forms", "needed"),
    [
        (["none", "none", "none"], [False, False, False]),
        (["powers", "none", "none"], [False, False, False]),
        (["none", "powers", "none"], [True, False, False]),
        (["none", "none", "both"], [True, True, False]),
    ],
)
def test_a_head_is_needed_if_a_later_exit_combines(forms: list[str], needed: list[bool]) -> None:
    combiner = random_combiner(forms, 3)
    assert [combiner.needs(exit) for exit in range(EXITS)] == needed
    reads = [here or later for here, later in zip(map("none".__ne__, forms), needed, strict=True)]
    assert [combiner.reads(exit) for exit in range(EXITS)] == reads
    assert combiner.empty == (not any(reads))


@given(FORMS, SEEDS)
def test_an_output_changes_later_answers_just_where_it_is_needed(
    forms: list[str], seed: int
) -> None:
    combiner = random_combiner(forms, 3, seed)
    log_probs = random_log_probs(4, 3, seed)
    for exit in range(EXITS):
        changed = log_probs.copy()
        changed[exit] = random_log_probs(4, 3, seed + 1)[exit]
        before, after = combiner.combine_all(log_probs), combiner.combine_all(changed)
        moved = not np.allclose(before[exit + 1 :], after[exit + 1 :], atol=1e-9)
        assert moved == combiner.needs(exit)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("form", ["powers", "both"])
def test_a_head_that_was_left_out_is_noticed(rows: int, form: str) -> None:
    combiner = random_combiner(["none", "none", form], 4)
    log_probs = random_log_probs(rows, 4)
    memory = combiner.remember(0, log_probs[0], combiner.start(rows))
    with pytest.raises(ValueError, match="run every head that `needs` names"):
        combiner.remember(2, log_probs[2], memory)


# Identity


@pytest.mark.parametrize("shape", [(3, 5, 4), (3, 5, 6, 4), (1, 5, 4)])
def test_without_weights_outputs_pass_as_they_are(shape: tuple[int, ...]) -> None:
    log_probs = np.log(np.full(shape, 0.25, np.float32))
    combiner = Combiner()
    assert combiner.combine_all(log_probs) is log_probs
    memory = combiner.start(5)
    for exit, outputs in enumerate(log_probs):
        memory = combiner.remember(exit, outputs, memory)
        assert combiner.combine(exit, outputs, memory) is outputs
        assert memory.size == 0 and not combiner.needs(exit)


# Files


@given(FORMS, SEEDS)
def test_a_combiner_comes_back_from_its_arrays(forms: list[str], seed: int) -> None:
    combiner = random_combiner(forms, 3, seed)
    loaded = Combiner.load(combiner.arrays(), EXITS)
    log_probs = random_log_probs(3, 3, seed)
    assert np.array_equal(loaded.combine_all(log_probs), combiner.combine_all(log_probs))
    assert all(loaded.needs(exit) == combiner.needs(exit) for exit in range(EXITS))


def test_arrays_without_a_combiner_are_those_of_the_identity() -> None:
    assert Combiner.load({"prices": np.ones(2)}, EXITS) == Combiner()
    assert Combiner().arrays() == {}


@pytest.mark.parametrize(
    "weights",
    [
        (np.ones(2),),
        (None, np.ones(3)),
        (np.ones((4, 4)),),
        (None, np.ones((1 + 8, 8))),
        (np.full(1, np.nan),),
        (np.ones((1, 1, 1)),),
    ],
)
def test_weights_that_do_not_fit_their_exit_are_refused(weights: tuple[Array | None, ...]) -> None:
    with pytest.raises(ValueError, match=rf"combine exit {len(weights) - 1} .* fit .* again"):
        Combiner(weights)


@pytest.mark.slow
def test_one_row_of_ten_classes_is_quick() -> None:
    combiner, log_probs = random_combiner(["products"] * EXITS, 10), random_log_probs(1, 10)
    memory = combiner.start(1)
    for exit in range(2):
        memory = combiner.remember(exit, log_probs[exit], memory)

    def at_the_last_exit() -> None:
        combiner.combine(2, log_probs[2], combiner.remember(2, log_probs[2], memory))

    assert min(timeit.repeat(at_the_last_exit, number=200, repeat=9)) / 200 < 50e-6
