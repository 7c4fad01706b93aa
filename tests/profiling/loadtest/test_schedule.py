import pytest

from profiling.loadtest.schedule import Schedule, read_schedule


def test_times_and_values_are_taken_apart() -> None:
    assert read_schedule("0:50, 20:200,40.5:5", float) == Schedule(
        (0.0, 20.0, 40.5), (50.0, 200.0, 5.0)
    )
    assert read_schedule("3:a", str) == Schedule((3.0,), ("a",))
    assert read_schedule("clean", str) == Schedule((0.0,), ("clean",))


@pytest.mark.parametrize("text", ["0:1,0:2", "5:1,2:2", "-1:1", "x:1", "0:1,2", "nan:1", "inf:1"])
def test_times_that_do_not_rise_are_one_sentence(text: str) -> None:
    with pytest.raises(ValueError, match="is not a SECONDS:VALUE"):
        read_schedule(text, float)


def test_each_value_is_in_force_from_its_time_on() -> None:
    steps = Schedule((2.0, 5.0), ("a", "b"))
    assert [steps.at(seconds) for seconds in (0.0, 2.0, 4.9, 5.0, 99.0)] == [0, 0, 0, 1, 1]
    assert list(steps.spans(9.0)) == [(2.0, 5.0, "a"), (5.0, 9.0, "b")]
