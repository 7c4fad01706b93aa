import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from models.stage_costs import StageCosts
from scheduler.batching import BatchPriority
from server.engine.queue import (
    AUDIT_EVERY,
    AUDIT_PATIENCE_S,
    DEADLINE_HORIZON_PASSES,
    StageQueues,
)
from server.engine.request import AUDIT, PRIORITIES, InferenceRequest, Shape

STAGES = 3
SHAPES: tuple[Shape, ...] = (((8,),), ((16,),))
List = tuple[int, int, Shape, bool]  # priority, stage, shape, blind
CPU = StageCosts.of_exits([1.0, 2.0, 3.0])
GPU = StageCosts.of_exits([1.0, 2.0, 3.0], free_rows=16)


def row(
    stage: int = 0,
    *,
    priority: int = 1,
    shape: Shape = SHAPES[0],
    blind: bool = False,
    ready_s: float = 0.0,
    arrived_s: float | None = None,
    deadline_s: float | None = None,
) -> InferenceRequest:
    made = InferenceRequest(
        (), priority=priority, shape=shape, run_to_end=blind, deadline_s=deadline_s
    )
    made.stage, made.ready_s = stage, ready_s
    made.arrived_s = ready_s if arrived_s is None else arrived_s
    return made


def list_of(row: InferenceRequest) -> List:
    return row.priority, row.stage, row.shape, row.run_to_end


def filled(*rows: InferenceRequest, costs: StageCosts = GPU, max_batch: int = 16) -> StageQueues:
    lists = StageQueues(BatchPriority(costs.table_ms(max_batch)))
    for each in rows:
        lists.push(each)
    return lists


class Lists(RuleBasedStateMachine):
    """The ready lists beside plain Python lists."""

    waiting: dict[List, list[InferenceRequest]]
    gone: list[InferenceRequest]
    now_s = 0.0

    @initialize(
        costs=st.sampled_from([CPU, GPU]),
        max_batch=st.integers(1, 8),
        patience=st.sampled_from([0.5, 8.0]),
    )
    def begin(self, costs: StageCosts, max_batch: int, patience: float) -> None:
        self.urgency = BatchPriority(costs.table_ms(max_batch), patience)
        self.lists, self.max_batch = StageQueues(self.urgency), max_batch
        self.waiting, self.gone = {}, []
        self.pressed = [False] * PRIORITIES

    @rule(
        priority=st.sampled_from([1, 1, 1, 0, 3]),
        stage=st.integers(0, STAGES - 1),
        shape=st.sampled_from(SHAPES),
        blind=st.sampled_from([False, False, True]),
        count=st.integers(1, 6),
        age_s=st.floats(0, 0.02),
        left_s=st.sampled_from([None, None, 0.0, 0.003, 0.02, 1.0]),
    )
    def push(
        self,
        priority: int,
        stage: int,
        shape: Shape,
        blind: bool,
        count: int,
        age_s: float,
        left_s: float | None,
    ) -> None:
        for _ in range(count):
            pushed = row(
                stage,
                priority=priority,
                shape=shape,
                blind=blind,
                ready_s=self.now_s,
                arrived_s=self.now_s - age_s * (stage > 0),
                deadline_s=None if left_s is None else self.now_s + left_s,
            )
            self.lists.push(pushed)
            self.waiting.setdefault(list_of(pushed), []).append(pushed)

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.01, 0.1]))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @precondition(lambda self: self.waiting)
    @rule(fits=st.sampled_from([1000, 1000, 1, 3]))
    def take(self, fits: int) -> None:
        most = min(self.max_batch, fits)
        level = min(priority for priority, *_ in self.waiting)
        rivals = [each for each in self.waiting if each[0] == level]
        batch = self.lists.take(most, self.now_s)
        first = list_of(batch[0])
        pressing = self.pressing_among(rivals)
        assert first in (pressing or self.next_among(rivals))
        self.pressed[level] = bool(pressing)
        assert 1 <= len(batch) <= most
        assert {each[1:] for each in map(list_of, batch)} == {first[1:]}
        self.forget(self.expected(first, most, by_deadline=bool(pressing)), batch)

    def pressing_among(self, rivals: list[List]) -> list[List]:
        """The lists that go first for their deadlines: those that bear answers never before."""
        came_s = min(self.waiting[each][0].arrived_s for each in rivals)
        impatient = (self.now_s - came_s) * 1e3 > self.urgency.max_overtake_ms
        until_s = self.now_s + DEADLINE_HORIZON_PASSES * self.urgency.pass_ms / 1e3
        near = [
            ((each[1] > 0, row.deadline_s), each)
            for each in rivals
            for row in self.waiting[each]
            if row.deadline_s is not None and row.deadline_s <= until_s
        ]
        if not near or (impatient and self.pressed[rivals[0][0]]):
            return []
        return [each for turn, each in near if turn == min(turn for turn, _ in near)]

    def next_among(self, rivals: list[List]) -> list[List]:
        """The lists that may go next: the most urgent, or the first where that came too late."""
        came_s = {each: self.waiting[each][0].arrived_s for each in rivals}

        def urgency(each: List) -> tuple[float, int]:
            rows, age_ms = len(self.waiting[each]), (self.now_s - came_s[each]) * 1e3
            return self.urgency.of(each[1], rows, age_ms), each[1]

        most, first_s = max(map(urgency, rivals)), min(came_s.values())
        best = [each for each in rivals if urgency(each) == most]
        if any((came_s[each] - first_s) * 1e3 > self.urgency.max_overtake_ms for each in best):
            best += [each for each in rivals if came_s[each] == first_s]
        return best

    def expected(self, first: List, most: int, *, by_deadline: bool) -> list[InferenceRequest]:
        """The first rows of a list, then of those of lower priority beside it."""
        beside = [(priority, *first[1:]) for priority in range(first[0], PRIORITIES)]
        rows = [row for each in beside for row in self.in_order(each, by_deadline)]
        return rows[:most]

    def in_order(self, each: List, by_deadline: bool) -> list[InferenceRequest]:
        rows = self.waiting.get(each, [])
        if not by_deadline:
            return rows
        due = [row for row in rows if row.deadline_s is not None]
        rest = [row for row in rows if row.deadline_s is None]
        return sorted(due, key=lambda row: row.deadline_s or 0.0) + rest

    def forget(self, expected: list[InferenceRequest], batch: list[InferenceRequest]) -> None:
        assert [id(each) for each in batch] == [id(each) for each in expected]
        for each in batch:
            self.drop(each)

    def drop(self, row: InferenceRequest) -> None:
        self.gone.append(row)
        self.waiting[list_of(row)].remove(row)
        if not self.waiting[list_of(row)]:
            del self.waiting[list_of(row)]

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        rows = [row for each in self.waiting.values() for row in each]
        chosen = data.draw(st.lists(st.sampled_from(rows), max_size=4, unique_by=id))
        assert self.lists.remove([*self.gone[-2:], *chosen, *chosen]) == chosen
        for each in chosen:
            self.drop(each)

    @invariant()
    def it_counts_what_waits(self) -> None:
        counts = [0] * STAGES
        for (_, stage, *_), rows in self.waiting.items():
            counts[stage] += len(rows)
        assert self.lists.depths(STAGES) == counts
        assert bool(self.lists) == bool(self.waiting)
        since = [rows[0].ready_s for rows in self.waiting.values()]
        assert self.lists.oldest_s() == min(since, default=None)

    def teardown(self) -> None:
        while self.waiting:
            self.take(1000)
        assert not self.lists
        assert len({id(each) for each in self.gone}) == len(self.gone)


def test_no_row_is_lost_or_doubled_and_batches_are_those_promised() -> None:
    run_state_machine_as_test(
        Lists, settings=settings(max_examples=75, stateful_step_count=50, deadline=None)
    )


def test_better_priorities_go_strictly_first() -> None:
    urgent, full = row(0, priority=0, ready_s=0.9), [row(2, priority=1) for _ in range(16)]
    lists = filled(*full, urgent)
    assert lists.take(16, 1.0) == [urgent]
    assert lists.take(16, 1.0) == full


def test_free_places_go_to_lower_priorities_of_the_same_stage_and_shape() -> None:
    first, beside = row(1, priority=0), [row(1, priority=priority) for priority in (3, 2, 2, 3)]
    other = [row(0, priority=2), row(1, priority=2, shape=SHAPES[1])]
    lists = filled(first, *beside, *other, row(1, priority=2, blind=True))
    assert lists.take(4, 1.0) == [first, beside[1], beside[2], beside[0]]
    assert lists.depths(2) == [1, 3]


def test_where_batches_save_nothing_what_came_first_goes_first() -> None:
    times = {0: 0.3, 1: 0.1, 2: 0.2}
    crowd = [row(0, ready_s=0.4) for _ in range(9)]
    lists = filled(*(row(at, arrived_s=came) for at, came in times.items()), *crowd, costs=CPU)
    assert [lists.take(1, 1.0)[0].stage for _ in range(3)] == [1, 2, 0]


def test_of_rows_as_old_the_fuller_batch_goes_first_and_of_as_full_ones_the_deepest() -> None:
    lists = filled(*(row(stage, ready_s=0.99) for stage in [0] * 9 + [1] * 4 + [2] * 9))
    assert [len(lists.take(16, 1.0)) for _ in range(3)] == [9, 9, 4]
    lists = filled(*(row(stage, ready_s=0.99) for stage in [0] * 40 + [1] * 17))
    assert [lists.take(16, 1.0)[0].stage for _ in range(2)] == [1, 0]


def test_a_row_that_has_only_just_come_is_taken() -> None:
    lone = row(0, ready_s=1.0)
    assert filled(lone).take(16, 1.0) == [lone]


def feed(lists: StageQueues, stage: int, shape: Shape, at_s: float) -> None:
    while lists.depths(STAGES)[stage] < 64:
        lists.push(row(stage, shape=shape, ready_s=at_s))


@pytest.mark.parametrize(
    ("stage", "busy_stage", "busy_shape"),
    [(1, 0, SHAPES[0]), (1, 2, SHAPES[0]), (2, 2, SHAPES[1]), (0, 0, SHAPES[1])],
    ids=["behind the first", "after the last", "of a rare shape", "of a rare shape, new"],
)
def test_a_row_has_its_turn_however_full_the_lists_of_others_are(
    stage: int, busy_stage: int, busy_shape: Shape
) -> None:
    lone, now_s, overtook = row(stage), 0.0, list[InferenceRequest]()
    lists, patience_s = filled(lone), BatchPriority(GPU.table_ms(16)).max_overtake_ms / 1e3
    feed(lists, busy_stage, busy_shape, -0.01)
    while lone not in (batch := lists.take(16, now_s)):
        overtook += batch
        now_s += 0.001
        feed(lists, busy_stage, busy_shape, now_s)
        assert len(overtook) < 50_000, "starved"
    assert max(each.ready_s for each in overtook) <= patience_s + 0.002


def test_no_row_is_overtaken_by_one_that_came_later_by_more_than_its_patience() -> None:
    patience_s = BatchPriority(GPU.table_ms(16)).max_overtake_ms / 1e3
    for later_s, taken in ((0.9 * patience_s, 16), (1.1 * patience_s, 1)):
        crowd = [row(0, ready_s=later_s) for _ in range(64)]
        lists = filled(row(1), *crowd)
        assert len(lists.take(16, later_s + 0.001)) == taken


def test_rows_that_do_not_wait_are_not_removed() -> None:
    waits, taken, never = row(), row(), row(2)
    lists = filled(taken)
    lists.take(1, 0.0)
    lists.push(waits)
    assert lists.remove([taken, never, waits]) == [waits]
    assert not lists and lists.oldest_s() is None


def test_rows_whose_deadlines_are_near_go_first_without_an_answer_before_with_one() -> None:
    near_s = 1.0 + 0.9 * DEADLINE_HORIZON_PASSES * 3e-3
    first, far = row(0), row(0, deadline_s=2.0)
    bears, none, sooner = row(1, deadline_s=1.0), row(0, deadline_s=near_s), row(0, deadline_s=1.1)
    sooner.deadline_s = near_s - 1e-4
    lists = filled(first, far, bears, none, sooner, costs=CPU, max_batch=1)
    for each in (first, far, bears, none, sooner):
        each.arrived_s = 0.999
    assert [lists.take(1, 1.0)[0] for _ in range(5)] == [sooner, none, bears, first, far]


@pytest.mark.parametrize("stage", range(STAGES))
@pytest.mark.parametrize("costs", [CPU, GPU])
def test_no_row_starves_for_those_with_deadlines(stage: int, costs: StageCosts) -> None:
    lone, now_s, turns = row(stage), 0.0, 0
    max_batch = 1 if costs is CPU else 4
    lists = filled(lone, costs=costs, max_batch=max_batch)
    patience_s = lists.priority.max_overtake_ms / 1e3
    while True:
        while lists.depths(STAGES)[0] < 8:
            lists.push(row(0, ready_s=now_s, deadline_s=now_s + 0.001))
        turns += now_s > patience_s
        if lone in lists.take(max_batch, now_s):
            break
        now_s += 0.001
        assert turns < 50, "starved"
    assert now_s > patience_s or max_batch > 1


def test_deadlines_of_a_worse_priority_overtake_none_of_a_better() -> None:
    better, worse = row(0), row(0, priority=2, deadline_s=0.001)
    assert filled(worse, better, costs=CPU, max_batch=1).take(1, 0.0) == [better]


def test_audits_wait_for_users_but_not_for_ever() -> None:
    lists = filled(row(priority=AUDIT, ready_s=0.0))
    order = []
    for turn in range(60):
        lists.push(row(ready_s=turn / 10))
        (taken,) = lists.take(1, now_s=turn / 10)
        order.append(taken.priority)
        if taken.priority == AUDIT:
            lists.push(row(priority=AUDIT, ready_s=turn / 10))
    turns = [turn for turn, priority in enumerate(order) if priority == AUDIT]
    assert turns[0] > AUDIT_PATIENCE_S * 10 and len(turns) == 3
    assert all(later - first > AUDIT_EVERY for first, later in itertools.pairwise(turns))


def test_where_no_user_waits_audits_go_at_once() -> None:
    lists = filled(*[row(priority=AUDIT) for _ in range(3)])
    assert [lists.take(1, now_s=0.0)[0].priority for _ in range(3)] == [AUDIT] * 3
