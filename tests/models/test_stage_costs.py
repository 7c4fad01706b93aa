import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.stage_costs import StageCosts, read_stage_costs
from tests.bundles import variant_of

Array = NDArray[np.float64]


def costs(*stages_ms: list[float], sizes: tuple[int, ...] = (1, 2, 4)) -> StageCosts:
    return StageCosts(sizes, np.array(stages_ms, float))


@st.composite
def tables(draw: st.DrawFn) -> StageCosts:
    """Times that rise with the size of the batch."""
    sizes = draw(st.lists(st.integers(2, 64), max_size=5, unique=True).map(sorted))
    steps = st.lists(st.floats(0, 50), min_size=len(sizes) + 1, max_size=len(sizes) + 1)
    stages = draw(st.lists(steps, min_size=1, max_size=4))
    return StageCosts((1, *sizes), np.cumsum(np.array(stages), 1))


@given(tables())
def test_measured_sizes_cost_what_was_measured(table: StageCosts) -> None:
    for stage in range(table.num_exits):
        times = [table.batch_ms(stage, size) for size in table.batch_sizes]
        assert times == pytest.approx(table.stages_ms[stage])


@given(tables())
def test_a_larger_batch_never_costs_less(table: StageCosts) -> None:
    for stage in range(table.num_exits):
        times = [table.batch_ms(stage, rows) for rows in range(1, 2 * table.batch_sizes[-1] + 3)]
        assert (np.diff(times) >= -1e-9).all()


@pytest.mark.parametrize(("rows", "ms"), [(1, 2.0), (2, 3.0), (3, 5.0), (4, 7.0), (6, 11.0)])
def test_sizes_between_and_beyond_are_on_straight_lines(rows: int, ms: float) -> None:
    assert costs([2, 3, 7]).batch_ms(0, rows) == pytest.approx(ms)


def test_beyond_one_measured_size_rows_cost_alike() -> None:
    assert costs([3], sizes=(1,)).batch_ms(0, 5) == pytest.approx(15)


def test_beyond_the_largest_size_nothing_gets_cheaper() -> None:
    assert costs([5, 4, 2]).batch_ms(0, 100) == pytest.approx(2)


def test_exits_cost_what_one_row_takes_until_them() -> None:
    table = costs([1, 2, 3], [2, 3, 4], [0.5, 1, 2])
    assert table.num_exits == 3
    assert table.costs_ms == pytest.approx([1, 3, 3.5])


@given(rows_ms=st.lists(st.floats(0.01, 10), min_size=1, max_size=3), batch_ms=st.floats(0, 10))
def test_the_line_through_points_of_a_line_is_that_line(
    rows_ms: list[float], batch_ms: float
) -> None:
    sizes = (1, 2, 4, 8)
    table = StageCosts(sizes, np.outer(rows_ms, sizes) + batch_ms)
    line = table.line()
    assert line.row_ms == pytest.approx(np.array(rows_ms))
    assert line.batch_ms == pytest.approx(np.full(len(rows_ms), batch_ms), abs=1e-9)


def test_the_line_through_one_size_charges_rows_alone() -> None:
    line = costs([3], [5], sizes=(1,)).line()
    assert line.row_ms.tolist() == [3, 5] and line.batch_ms.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("stages_ms", "rows"),
    [
        ([[1, 2, 4]], 1),  # a CPU: twice the rows take twice the time
        ([[1, 1.7, 3.4]], 2),
        ([[1, 1.7, 2.9]], 4),
        ([[1, 1.9, 2]], 1),  # a size that does not pay ends it
        ([[1, 1, 1], [1, 2, 4]], 4),  # all stages together
        ([[0, 0, 0]], 4),
    ],
)
def test_sizes_are_worthwhile_while_each_saves_a_tenth_of_a_rows_time(
    stages_ms: list[list[float]], rows: int
) -> None:
    assert costs(*stages_ms).worthwhile_rows() == rows


@pytest.mark.parametrize(
    ("budget_ms", "limit", "rows"),
    [(10, 4, 4), (10, 3, 3), (2.5, 4, 2), (1.9, 4, 1), (0.1, 4, 1), (3.0, 3, 3), (100, 64, 64)],
)
def test_batches_are_bounded_by_what_leaves_at_exit_0_within_a_budget(
    budget_ms: float, limit: int, rows: int
) -> None:
    table = costs([1, 2, 4], [50, 60, 70])
    assert table.rows_within(budget_ms, limit) == rows


@given(tables(), st.floats(0.1, 100), st.integers(1, 128))
def test_the_bound_keeps_the_budget_where_one_row_does(
    table: StageCosts, budget_ms: float, limit: int
) -> None:
    rows = table.rows_within(budget_ms, limit)
    assert 1 <= rows <= limit
    assert rows == 1 or table.batch_ms(0, rows) <= budget_ms


def test_free_rows_cost_nothing_and_more_grow_in_proportion() -> None:
    table = StageCosts.of_exits([2.0, 5.0], free_rows=16)
    assert table.costs_ms == pytest.approx([2, 5])
    for rows, factor in ((1, 1), (16, 1), (24, 1.5), (32, 2), (64, 4)):
        assert table.batch_ms(1, rows) == pytest.approx(3 * factor)
    alone = StageCosts.of_exits([2.0, 5.0])
    assert [alone.batch_ms(0, rows) for rows in (1, 2, 5)] == pytest.approx([2, 4, 10])


@given(tables())
def test_a_table_that_was_written_is_read_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, table: StageCosts
) -> None:
    path = tmp_path_factory.mktemp("costs") / "costs.json"
    path.write_text(json.dumps(table.to_json()))
    read = read_stage_costs(path)
    assert read.batch_sizes == table.batch_sizes
    assert read.stages_ms == pytest.approx(table.stages_ms, abs=1e-4)


@pytest.mark.parametrize("name", ["cifar10-resnet56", "ag-news-minilm"])
def test_the_profiles_of_the_shipped_bundles_can_be_read(name: str, shipped_bundle: Path) -> None:
    table = read_stage_costs(variant_of(shipped_bundle.with_name(name)).profile)
    assert table.num_exits >= 3 and (table.costs_ms > 0).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not a table of stage costs"),
        ("[1, 2]", "is not a table of stage costs"),
        ('{"batch_sizes": [1]}', "lacks 'stages_ms'"),
        ('{"batch_sizes": [], "stages_ms": [[]]}', "rising sizes that start at 1"),
        ('{"batch_sizes": [2, 4], "stages_ms": [[1, 2]]}', "rising sizes that start at 1"),
        ('{"batch_sizes": [1, 1], "stages_ms": [[1, 2]]}', "rising sizes that start at 1"),
        ('{"batch_sizes": [1, 2], "stages_ms": [[1, 2], [3]]}', "is not a table of stage costs"),
        ('{"batch_sizes": [1, 2], "stages_ms": [[1, 2, 3]]}', "each with 2 times"),
        ('{"batch_sizes": [1], "stages_ms": [1]}', "one row per stage"),
        ('{"batch_sizes": [1], "stages_ms": [[-1]]}', "negative"),
        ('{"batch_sizes": [1], "stages_ms": [[NaN]]}', "NaN"),
        ('{"batch_sizes": [1], "stages_ms": [["x"]]}', "is not a table of stage costs"),
        ('{"batch_sizes": null, "stages_ms": [[1]]}', "is not a table of stage costs"),
    ],
)
def test_a_file_that_is_no_table_is_named_with_what_is_wrong(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "costs.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="it needs batch_sizes") as caught:
        read_stage_costs(path)
    assert str(caught.value).startswith(str(path)) and message in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.json is not a table of stage costs"):
        read_stage_costs(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("costs_ms", "free_rows", "message"),
    [([2.0, 1.0], 1, "rising milliseconds"), ([1.0, 2.0], 0, "free_rows is 0")],
)
def test_costs_of_exits_must_rise_and_a_row_is_never_free(
    costs_ms: list[float], free_rows: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        StageCosts.of_exits(costs_ms, free_rows)
