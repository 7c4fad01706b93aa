import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from scheduler.eenet import EENetPolicy, ExitScorer
from scheduler.maxprob_fit import fit_maxprob
from scheduler.policy import score_all
from scheduler.scheduler import Scheduler, load_scheduler, save_scheduler

Problem = tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]


@pytest.fixture(scope="module", params=["maxprob", "eenet"])
def fitted(request: pytest.FixtureRequest, make_problem: Callable[..., Problem]) -> Scheduler:
    scheduler = fit_maxprob(*make_problem(rows=100))
    if request.param == "maxprob":
        return scheduler
    rng = np.random.default_rng(0)
    scorer = ExitScorer(tuple(rng.normal(size=5 + 3 + k) for k in range(3)))
    table = scheduler.policy.table  # type: ignore[attr-defined]
    return Scheduler(EENetPolicy(scorer, table), scheduler.frontier)


def rewrite_head(folder: Path, **changes: Any) -> None:
    path = folder / "scheduler.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewrite_arrays(folder: Path, **changes: NDArray[Any] | None) -> None:
    path = folder / "scheduler.npz"
    with np.load(path) as arrays:
        held = dict(arrays) | changes
    np.savez(path, **{name: array for name, array in held.items() if array is not None})


def test_a_scheduler_comes_back_as_it_was_saved(
    fitted: Scheduler, make_problem: Callable[..., Problem], tmp_path: Path
) -> None:
    save_scheduler(fitted, tmp_path)
    loaded = load_scheduler(tmp_path)
    assert (loaded.policy.kind, loaded.policy.num_exits) == (fitted.policy.kind, 3)
    for field in ("parameters", "exit_rates", "expected_accuracy", "costs_ms"):
        saved, read = getattr(fitted.frontier, field), getattr(loaded.frontier, field)
        assert np.array_equal(saved, read), field
    for parameter in (0.0, *fitted.frontier.parameters, np.inf):
        before, after = (s.policy.thresholds(parameter) for s in (fitted, loaded))
        assert np.array_equal(before, after)
    log_probs, *_ = make_problem(seed=1)
    before, after = (score_all(s.policy, log_probs) for s in (fitted, loaded))
    assert np.array_equal(before, after)


def test_saving_writes_the_two_files_and_no_other(fitted: Scheduler, tmp_path: Path) -> None:
    save_scheduler(fitted, tmp_path)
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == ["scheduler.json", "scheduler.npz"]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "3", '{"format_version": 1}', "\udcff"])
def test_a_damaged_description_is_named(fitted: Scheduler, tmp_path: Path, text: str) -> None:
    save_scheduler(fitted, tmp_path)
    (tmp_path / "scheduler.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"scheduler\.json is not a scheduler description"):
        load_scheduler(tmp_path)


def test_another_format_version_is_refused(fitted: Scheduler, tmp_path: Path) -> None:
    save_scheduler(fitted, tmp_path)
    rewrite_head(tmp_path, format_version=99)
    with pytest.raises(ValueError, match=r"scheduler\.json has format version 99"):
        load_scheduler(tmp_path)


def test_an_unknown_policy_is_refused_by_name(fitted: Scheduler, tmp_path: Path) -> None:
    save_scheduler(fitted, tmp_path)
    rewrite_head(tmp_path, policy="oracle")
    with pytest.raises(ValueError, match=r"scheduler\.json names the policy 'oracle'"):
        load_scheduler(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_archive_is_named(fitted: Scheduler, tmp_path: Path, share: float) -> None:
    save_scheduler(fitted, tmp_path)
    path = tmp_path / "scheduler.npz"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"scheduler\.npz cannot be read"):
        load_scheduler(tmp_path)


def test_an_archive_with_changed_contents_is_named(fitted: Scheduler, tmp_path: Path) -> None:
    save_scheduler(fitted, tmp_path)
    path = tmp_path / "scheduler.npz"
    content = bytearray(path.read_bytes())
    content[200:260] = bytes(60)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"scheduler\.npz cannot be read"):
        load_scheduler(tmp_path)


def test_a_missing_archive_is_named(fitted: Scheduler, tmp_path: Path) -> None:
    save_scheduler(fitted, tmp_path)
    (tmp_path / "scheduler.npz").unlink()
    with pytest.raises(ValueError, match=r"scheduler\.npz cannot be read"):
        load_scheduler(tmp_path)


@pytest.mark.parametrize("name", ["parameters", "costs_ms", "table_thresholds"])
def test_an_archive_without_an_array_is_named(fitted: Scheduler, tmp_path: Path, name: str) -> None:
    save_scheduler(fitted, tmp_path)
    rewrite_arrays(tmp_path, **{name: None})
    with pytest.raises(ValueError, match=r"scheduler\.npz cannot be read"):
        load_scheduler(tmp_path)


def test_pickled_objects_are_refused(fitted: Scheduler, tmp_path: Path) -> None:
    save_scheduler(fitted, tmp_path)
    rewrite_arrays(tmp_path, parameters=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match=r"scheduler\.npz cannot be read"):
        load_scheduler(tmp_path)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("costs_ms", np.ones(4)),
        ("table_thresholds", np.zeros((5, 2))),
        ("table_thresholds", np.zeros(5)),
    ],
)
def test_files_that_disagree_about_the_exits_are_named(
    fitted: Scheduler, tmp_path: Path, name: str, array: NDArray[np.float64]
) -> None:
    save_scheduler(fitted, tmp_path)
    rewrite_arrays(tmp_path, **{name: array})
    with pytest.raises(ValueError, match=r"scheduler\.npz and scheduler\.json disagree"):
        load_scheduler(tmp_path)


def test_a_policy_without_a_file_format_is_refused(fitted: Scheduler, tmp_path: Path) -> None:
    class Oracle:
        kind = "oracle"
        num_exits = 3

    with pytest.raises(TypeError, match="'oracle' policy has no file format"):
        save_scheduler(fitted._replace(policy=Oracle()), tmp_path)  # type: ignore[arg-type]
