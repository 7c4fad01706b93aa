import pytest

from benchmarks.overload import OURS, RIVAL, Case, draw, is_met, print_table
from profiling.simulation.comparison import Result


def result(attainment: float, accuracy: float, policy: str = RIVAL) -> Result:
    return Result(policy, 20.0, attainment, accuracy, 1 - attainment, (1.0, 0.0))


@pytest.mark.parametrize(
    ("attainment", "accuracy", "met"),
    [
        (0.8, 0.721, True),
        (0.8, 0.719, False),
        (0.79, 0.75, False),
        (0.901, 0.7, True),
        (0.899, 0.7, False),
        (0.95, 0.69, False),
    ],
)
def test_the_goal_is_two_points_more_or_half_the_misses(
    attainment: float, accuracy: float, met: bool
) -> None:
    assert is_met(result(attainment, accuracy), result(0.8, 0.7)) == met


def test_where_the_rival_misses_nothing_nothing_can_be_halved() -> None:
    assert not is_met(result(1.0, 0.7), result(1.0, 0.7))
    assert is_met(result(1.0, 0.73), result(1.0, 0.7))


def made_up() -> Case:
    ways = ("whole network", "exit 0", "exit 1", "frozen thresholds", RIVAL, *OURS)
    found = {way: result(0.5 + place / 20, 0.5 + place / 30, way) for place, way in enumerate(ways)}
    return Case(0.1, 20.0, 100, found)


def test_the_table_marks_where_the_goal_is_met(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("image", [made_up()])
    *_, row = capsys.readouterr().out.splitlines()
    assert row.startswith("| 10% | 20 ms | 50.0 / 50.0 | 55.0 / 53.3 |")
    assert "| 70.0 / 63.3 | **75.0 / 66.7** | **80.0 / 70.0** | **85.0 / 73.3** |" in row


def test_the_figure_names_what_lies_outside() -> None:
    (axes,) = draw({"image": [made_up()]}).axes
    assert axes.get_title() == "images, SLO 20 ms"
    assert "whole network: 50 / 50" in axes.texts[-1].get_text()
    assert len(axes.get_legend_handles_labels()[1]) == 5
