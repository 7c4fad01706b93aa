import numpy as np

from server.reports import Answers, Work
from server.statistics import InferenceStatistics


def answers(count: int, failed: int = 0) -> Answers:
    whole, real = np.zeros(count, np.int64), np.ones(count)
    return Answers(
        whole, whole, whole, 2 * real, real, 4 * real, np.full(count, np.nan), real > 0,
        (), np.full(failed, 3.0),
    )  # fmt: skip


def work(*batches: tuple[int, int, float]) -> Work:
    stages, rows, elapsed_ms = zip(*batches, strict=True)
    return Work(
        np.array(stages), np.array(rows), np.array(elapsed_ms), [], [], 0, 0, 0, 0,
        np.zeros(3, np.int64), 0.0, None, False,
    )  # fmt: skip


def test_nothing_done_is_all_zeros() -> None:
    shown = InferenceStatistics(lambda: 5.0).to_json("m", "1")
    assert (shown["name"], shown["version"], shown["last_inference"]) == ("m", "1", 0)
    assert (shown["inference_count"], shown["execution_count"]) == (0, 0)
    assert all(each == {"count": 0, "ns": 0} for each in shown["inference_stats"].values())
    assert shown["batch_stats"] == []


def test_samples_and_the_batches_of_the_first_stage_are_counted() -> None:
    statistics = InferenceStatistics(lambda: 1234.5)
    statistics.note_answers(answers(3, failed=2))
    statistics.note_work(work((0, 2, 1.0), (1, 2, 9.0), (0, 1, 0.5), (0, 2, 3.0)))
    shown = statistics.to_json("m", "1")
    assert shown["last_inference"] == 1234500
    assert (shown["inference_count"], shown["execution_count"]) == (3, 3)
    stats = shown["inference_stats"]
    assert stats["success"] == {"count": 3, "ns": 12_000_000}
    assert stats["fail"] == {"count": 2, "ns": 6_000_000}
    assert stats["queue"] == {"count": 3, "ns": 3_000_000}
    assert stats["compute_input"] == {"count": 3, "ns": 0}
    assert stats["compute_infer"] == {"count": 3, "ns": 6_000_000}
    assert stats["compute_output"] == {"count": 3, "ns": 3_000_000}
    sizes = {each["batch_size"]: each["compute_infer"] for each in shown["batch_stats"]}
    assert sizes == {1: {"count": 1, "ns": 500_000}, 2: {"count": 2, "ns": 4_000_000}}


def test_no_news_leaves_the_time_of_the_last_inference() -> None:
    times = iter([1.0, 2.0])
    statistics = InferenceStatistics(lambda: next(times))
    statistics.note_answers(answers(1))
    statistics.note_answers(answers(0))
    assert statistics.to_json("m", "1")["last_inference"] == 1000
