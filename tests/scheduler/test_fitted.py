import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from scheduler.combiner import Combiner
from scheduler.fitted import (
    COMBINED_VERSION,
    FORMAT_VERSION,
    Scheduler,
    load_scheduler,
    save_scheduler,
)
from scheduler.fitting.fit import fit_scheduler
from scheduler.policies import DEFAULT_POLICY, POLICIES
from scheduler.policy import exits_taken, replay, score_all

Problem = tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]


def fit(kind: str, make_problem: Callable[..., Problem]) -> Scheduler:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("scheduler.fitting.eenet.SCORE_STEPS", 10)
        patched.setattr("scheduler.fitting.eenet.ASSIGNMENT_STEPS", 10)
        patched.setattr("scheduler.fitting.eenet.NUM_BUDGETS", 4)
        patched.setattr("scheduler.frontier.GRID_STEP", 0.01)
        patched.setattr("scheduler.fitting.fit.FOLDS", 2)
        return fit_scheduler(kind, *make_problem(rows=100))


@pytest.fixture(scope="module", params=POLICIES)
def fitted(request: pytest.FixtureRequest, make_problem: Callable[..., Problem]) -> Scheduler:
    return fit(request.param, make_problem)


@pytest.fixture(scope="module")
def maxprob(make_problem: Callable[..., Problem]) -> Scheduler:
    return fit("maxprob", make_problem)


def rewrite_head(folder: Path, **changes: Any) -> None:
    path = folder / "scheduler.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewrite_arrays(folder: Path, **changes: NDArray[Any] | None) -> None:
    path = folder / "scheduler.npz"
    with np.load(path) as arrays:
        held = dict(arrays) | changes
    np.savez(path, **{name: array for name, array in held.items() if array is not None})


def arrays_of(part: Any) -> Iterator[NDArray[Any]]:
    """All numbers of a policy or frontier, in order."""
    if isinstance(part, np.ndarray):
        yield part
    elif isinstance(part, tuple):
        for each in part:
            yield from arrays_of(each)
    elif hasattr(part, "__dict__"):
        yield from arrays_of(tuple(vars(part).values()))


def test_a_scheduler_comes_back_as_it_was_saved(fitted: Scheduler, tmp_path: Path) -> None:
    save_scheduler(fitted, tmp_path)
    loaded = load_scheduler(tmp_path)
    assert type(loaded.policy) is type(fitted.policy)
    assert (loaded.policy.kind, loaded.policy.num_exits) == (fitted.policy.kind, 3)
    assert loaded.policy.never_exit_parameter == fitted.policy.never_exit_parameter
    assert loaded.combiner == Combiner()  # of 100 rows
    for before, after in zip(fitted[:2], loaded[:2], strict=True):
        pairs = list(zip(arrays_of(before), arrays_of(after), strict=True))
        assert len(pairs) >= 2
        assert all(np.array_equal(*pair) for pair in pairs)


def test_a_combiner_comes_back_too_and_older_programs_refuse_its_files(
    maxprob: Scheduler, tmp_path: Path
) -> None:
    weights = (None, np.array([0.5, 0.5]), np.ones((1 + 2 * 3 * 5, 5)))
    save_scheduler(maxprob._replace(combiner=Combiner(weights)), tmp_path)
    loaded = load_scheduler(tmp_path).combiner.weights
    assert loaded[0] is None
    assert all(np.array_equal(*pair) for pair in zip(loaded[1:], weights[1:], strict=True))
    head = json.loads((tmp_path / "scheduler.json").read_text())
    assert head["format_version"] == COMBINED_VERSION


def test_files_without_a_combiner_combine_nothing(maxprob: Scheduler, tmp_path: Path) -> None:
    save_scheduler(maxprob, tmp_path)
    assert load_scheduler(tmp_path).combiner.empty


def test_a_loaded_scheduler_decides_as_the_saved_one(
    fitted: Scheduler, make_problem: Callable[..., Problem], tmp_path: Path
) -> None:
    save_scheduler(fitted, tmp_path)
    policies = fitted.policy, load_scheduler(tmp_path).policy
    log_probs, *_ = make_problem(seed=1)
    before, after = (score_all(policy, log_probs) for policy in policies)
    assert np.array_equal(before, after)
    replayed = [replay(policy, log_probs) for policy in policies]
    for parameter in (*fitted.frontier.parameters[::10].tolist(), policies[0].never_exit_parameter):
        taken = [exits_taken(*pair, parameter) for pair in zip(policies, replayed, strict=True)]
        assert np.array_equal(*taken)
        thresholds = [policy.thresholds(parameter) for policy in policies]
        assert np.array_equal(*thresholds) or thresholds == [None, None]


def test_saving_again_replaces_a_scheduler_of_another_kind(
    fitted: Scheduler, maxprob: Scheduler, tmp_path: Path
) -> None:
    save_scheduler(fitted, tmp_path)
    save_scheduler(maxprob, tmp_path)
    assert load_scheduler(tmp_path).policy.kind == "maxprob"


def test_the_description_tells_version_policy_and_exits(fitted: Scheduler, tmp_path: Path) -> None:
    save_scheduler(fitted, tmp_path)
    head = json.loads((tmp_path / "scheduler.json").read_text())
    kind = fitted.policy.kind
    assert head == {"format_version": FORMAT_VERSION, "policy": kind, "num_exits": 3}


def test_the_default_is_one_of_the_policies() -> None:
    assert DEFAULT_POLICY in POLICIES
    assert len(set(POLICIES)) == len(POLICIES) == 7


def test_saving_writes_the_two_files_and_no_other(fitted: Scheduler, tmp_path: Path) -> None:
    save_scheduler(fitted, tmp_path)
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == ["scheduler.json", "scheduler.npz"]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "3", '{"format_version": 2}', "\udcff"])
def test_a_damaged_description_is_named(maxprob: Scheduler, tmp_path: Path, text: str) -> None:
    save_scheduler(maxprob, tmp_path)
    (tmp_path / "scheduler.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"scheduler\.json is not a scheduler description"):
        load_scheduler(tmp_path)


def test_a_folder_without_a_description_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"scheduler\.json is not a scheduler description"):
        load_scheduler(tmp_path)


@pytest.mark.parametrize("version", [1, 99, "2", None])
def test_another_format_version_is_refused(
    maxprob: Scheduler, tmp_path: Path, version: Any
) -> None:
    save_scheduler(maxprob, tmp_path)
    rewrite_head(tmp_path, format_version=version)
    with pytest.raises(ValueError, match=rf"scheduler\.json has format version {version}"):
        load_scheduler(tmp_path)


def test_an_unknown_policy_is_refused_by_name(maxprob: Scheduler, tmp_path: Path) -> None:
    save_scheduler(maxprob, tmp_path)
    rewrite_head(tmp_path, policy="oracle")
    with pytest.raises(ValueError, match=r"scheduler\.json names the policy 'oracle'"):
        load_scheduler(tmp_path)


@pytest.mark.parametrize(
    ("saved", "named"),
    [("maxprob", "eenet"), ("maxprob", "stopping"), ("stopping", "maxprob"), ("stopping", "eenet")],
)
def test_the_arrays_of_another_policy_are_refused(
    make_problem: Callable[..., Problem], tmp_path: Path, saved: str, named: str
) -> None:
    save_scheduler(fit(saved, make_problem), tmp_path)
    rewrite_head(tmp_path, policy=named)
    with pytest.raises(ValueError, match=r"scheduler\.npz cannot be read"):
        load_scheduler(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_archive_is_named(maxprob: Scheduler, tmp_path: Path, share: float) -> None:
    save_scheduler(maxprob, tmp_path)
    path = tmp_path / "scheduler.npz"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"scheduler\.npz cannot be read"):
        load_scheduler(tmp_path)


def test_an_archive_with_changed_contents_is_named(maxprob: Scheduler, tmp_path: Path) -> None:
    save_scheduler(maxprob, tmp_path)
    path = tmp_path / "scheduler.npz"
    content = bytearray(path.read_bytes())
    content[200:260] = bytes(60)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"scheduler\.npz cannot be read"):
        load_scheduler(tmp_path)


def test_a_missing_archive_is_named(maxprob: Scheduler, tmp_path: Path) -> None:
    save_scheduler(maxprob, tmp_path)
    (tmp_path / "scheduler.npz").unlink()
    with pytest.raises(ValueError, match=r"scheduler\.npz cannot be read"):
        load_scheduler(tmp_path)


def test_an_archive_without_any_one_of_its_arrays_is_named(
    fitted: Scheduler, tmp_path: Path
) -> None:
    save_scheduler(fitted, tmp_path)
    with np.load(tmp_path / "scheduler.npz") as arrays:
        names = arrays.files
    for name in names:
        save_scheduler(fitted, tmp_path)
        rewrite_arrays(tmp_path, **{name: None})
        with pytest.raises(ValueError, match=rf"scheduler\.npz cannot be read.*{name}"):
            load_scheduler(tmp_path)


def test_pickled_objects_are_refused(maxprob: Scheduler, tmp_path: Path) -> None:
    save_scheduler(maxprob, tmp_path)
    rewrite_arrays(tmp_path, parameters=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match=r"scheduler\.npz cannot be read"):
        load_scheduler(tmp_path)


@pytest.mark.parametrize("num_exits", [2, 4])
def test_a_description_of_other_exits_is_refused(
    fitted: Scheduler, tmp_path: Path, num_exits: int
) -> None:
    save_scheduler(fitted, tmp_path)
    rewrite_head(tmp_path, num_exits=num_exits)
    with pytest.raises(ValueError, match=r"scheduler\.npz"):
        load_scheduler(tmp_path)


@pytest.mark.parametrize("num_exits", ["three", None, [3], 4])
def test_exits_that_are_no_number_are_refused(
    maxprob: Scheduler, tmp_path: Path, num_exits: Any
) -> None:
    save_scheduler(maxprob, tmp_path)
    rewrite_head(tmp_path, num_exits=num_exits)
    with pytest.raises(ValueError, match=r"scheduler\.(json|npz)"):
        load_scheduler(tmp_path)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("costs_ms", np.ones(4)),
        ("exit_rates", np.ones((5, 3))),
        ("expected_accuracy", np.ones(5)),
        ("table_thresholds", np.zeros((5, 2))),
        ("table_thresholds", np.zeros(5)),
        ("parameters", np.zeros(())),
        ("table_parameters", np.zeros(5)),
    ],
)
def test_files_that_disagree_about_the_exits_or_points_are_named(
    maxprob: Scheduler, tmp_path: Path, name: str, array: NDArray[np.float64]
) -> None:
    save_scheduler(maxprob, tmp_path)
    rewrite_arrays(tmp_path, **{name: array})
    with pytest.raises(
        ValueError, match=r"scheduler\.npz (and scheduler\.json disagree|cannot be)"
    ):
        load_scheduler(tmp_path)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("prices", (2,)), ("steps_ms", (5,)), ("weights_0", (2, 2)), ("class_offsets_1", (3,))],
)
def test_arrays_of_a_stopping_policy_that_do_not_fit_together_are_refused(
    make_problem: Callable[..., Problem], tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    save_scheduler(fit("stopping", make_problem), tmp_path)
    rewrite_arrays(tmp_path, **{name: np.zeros(shape)})
    with pytest.raises(ValueError, match=r"scheduler\.npz"):
        load_scheduler(tmp_path)


def test_the_reference_of_a_fit_without_labels_is_kept(maxprob: Scheduler, tmp_path: Path) -> None:
    frontier = replace(maxprob.frontier, reference="last_exit")
    save_scheduler(maxprob._replace(frontier=frontier), tmp_path)
    loaded = load_scheduler(tmp_path).frontier
    assert loaded.reference == "last_exit"
    assert loaded.with_costs(2 * loaded.costs_ms).reference == "last_exit"
    rewrite_head(tmp_path, reference="luck")
    with pytest.raises(ValueError, match="the reference 'luck' is none of labels, last_exit"):
        load_scheduler(tmp_path)
