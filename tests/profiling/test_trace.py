from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiling.trace import check_replay, read_trace, replay_trace

TRACE = Path(__file__).parents[1] / "data/azure2023_code.npz"


def test_a_trace_is_read_from_its_first_arrival_on(tmp_path: Path) -> None:
    (tmp_path / "trace").write_text("1700000000.5\n1700000000.75\n1700000002\n")
    assert read_trace(tmp_path / "trace").tolist() == [0, 0.25, 1.5]
    np.savez(tmp_path / "trace.npz", arrival_s=np.array([5, 6, 8]))
    assert read_trace(tmp_path / "trace.npz").tolist() == [0, 1, 3]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("1\n2,3\n", "trace is no trace of arrivals"),
        ("", "trace holds no arrival"),
        ("1\nnan\n", "trace: time 2 is nan; give finite seconds"),
        ("1\n3\n2\n", "trace: time 3 comes before"),
    ],
)
def test_a_bad_text_is_named(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "trace").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        read_trace(tmp_path / "trace")
    with pytest.raises(ValueError, match="gone is no trace"):
        read_trace(tmp_path / "gone")


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"other": np.arange(3.0)}, r"has no array arrival_s; give one of arrival times"),
        ({"arrival_s": np.zeros((2, 2))}, r"arrival_s has the shape \(2, 2\)"),
        ({"arrival_s": np.array(["a"])}, "and the type <U1"),
        ({"arrival_s": np.zeros(0)}, "holds no arrival"),
        ({"arrival_s": np.array([0.0, np.inf])}, "time 2 is inf"),
        ({"arrival_s": np.array([0.0, 2.0, 1.0])}, "time 3 comes before"),
    ],
)
def test_a_bad_npz_is_named(tmp_path: Path, arrays: dict[str, np.ndarray], sentence: str) -> None:
    path = tmp_path / "trace.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=sentence):
        read_trace(path)
    path.write_text("1\n2\n")
    with pytest.raises(ValueError, match="is not an npz of plain arrays"):
        read_trace(path)


@pytest.mark.parametrize("exceeding", [0.05, 0.1, 0.2])
def test_the_real_trace_exceeds_the_capacity_as_often_as_asked(exceeding: float) -> None:
    replay = replay_trace(read_trace(TRACE), 60, 500.0, exceeding)
    assert replay.exceeding == pytest.approx(exceeding)
    assert replay.compression == pytest.approx(3435.9 / 60, rel=1e-3)
    assert replay.capacity_per_s == 500.0
    counts = np.bincount(replay.arrivals_s.astype(int), minlength=60)
    assert (counts > 500).mean() == pytest.approx(exceeding, abs=1.5 / 60)
    assert len(replay.arrivals_s) == pytest.approx(8818 * replay.scale, rel=0.03)


@given(
    st.integers(0, 1000),
    st.floats(0.5, 3.0),
    st.integers(20, 40),
    st.floats(5.0, 200.0),
    st.sampled_from([0.05, 0.1, 0.2, 0.5]),
)
def test_a_replay_keeps_to_its_time_and_exceeds_as_often_as_asked(
    seed: int, burstiness: float, seconds: int, capacity: float, exceeding: float
) -> None:
    gaps = np.random.default_rng(seed).exponential(size=300) ** burstiness
    replay = replay_trace(np.append(0.0, gaps.cumsum()), seconds, capacity, exceeding)
    arrivals_s = replay.arrivals_s
    assert (np.diff(arrivals_s) >= 0).all()
    assert not len(arrivals_s) or (arrivals_s[0] >= 0 and arrivals_s[-1] <= seconds)
    assert replay.exceeding == pytest.approx(round(exceeding * seconds) / seconds)


def test_the_shape_of_the_trace_stays() -> None:
    times_s = np.concatenate([np.linspace(0, 50, 100), np.linspace(50, 100, 900)])
    replay = replay_trace(times_s, 20, 1000.0, 0.5, seed=3)
    early = (replay.arrivals_s < 10).mean()
    assert early == pytest.approx(0.1, abs=0.01)
    assert np.array_equal(
        replay.arrivals_s, replay_trace(times_s, 20, 1000.0, 0.5, seed=3).arrivals_s
    )
    assert not np.array_equal(
        replay.arrivals_s, replay_trace(times_s, 20, 1000.0, 0.5, seed=4).arrivals_s
    )


@pytest.mark.parametrize(
    ("seconds", "exceeding", "sentence"),
    [
        (60.0, 0.0, "exceeding share is 0.0"),
        (60.0, 1.0, "exceeding share is 1.0"),
        (60.0, float("nan"), "exceeding share is nan"),
        (0.5, 0.5, "lasts 0.5 s; give a whole number"),
        (10.5, 0.5, "lasts 10.5 s; give a whole number"),
        (float("inf"), 0.5, "lasts inf s"),
        (9.0, 0.05, "5% of 9 s is less than one second; make the replay at least 20 s long"),
    ],
)
def test_a_share_must_be_a_second_at_least(seconds: float, exceeding: float, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        check_replay(seconds, exceeding)


def test_an_impossible_replay_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="the capacity is 0"):
        replay_trace(np.arange(100.0), 20, 0.0, 0.1)
    with pytest.raises(ValueError, match="come at one time"):
        replay_trace(np.zeros(100), 20, 10.0, 0.1)
