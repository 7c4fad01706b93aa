from __future__ import annotations

from typing import Literal

from hypothesis import given
from hypothesis import strategies as st

from server.processes.child_life import Action, ChildLife, LifeLimits

LIMITS = LifeLimits()
Event = Literal["nothing", "ready", "beat", "end"]


def actions(life: ChildLife, now_s: float) -> list[Action]:
    """All actions that are due."""
    return list(iter(lambda: life.next_action(now_s), None))


def running(now_s: float = 0.0) -> ChildLife:
    """A life whose child has just become ready."""
    life = ChildLife(LIMITS, now_s)
    assert actions(life, now_s) == [Action.START]
    life.ready(now_s)
    return life


def test_starts_at_once_and_once() -> None:
    life = ChildLife(LIMITS, 5.0)
    assert actions(life, 5.0) == [Action.START] and not actions(life, 6.0)


def test_silence_is_suspect_then_deadly() -> None:
    life = running()
    assert not actions(life, 0.9)
    assert actions(life, 1.0) == [Action.SUSPECT] and not actions(life, 9.9)
    assert actions(life, 10.0) == [Action.KILL] and not actions(life, 1000.0)
    assert not life.beat(1000.0)


def test_a_heartbeat_ends_the_suspicion_once() -> None:
    life = running()
    assert actions(life, 1.0) == [Action.SUSPECT]
    assert life.beat(2.0) and not life.beat(2.0)
    assert not actions(life, 2.9) and actions(life, 3.0) == [Action.SUSPECT]


def test_a_start_has_a_limit_of_its_own() -> None:
    life = ChildLife(LIMITS, 0.0)
    assert actions(life, 0.0) == [Action.START]
    assert not life.beat(60.0) and not actions(life, 119.9)
    assert actions(life, 120.0) == [Action.KILL]


def test_a_pause_of_control_is_left_out() -> None:
    life = running()
    life.excuse(pause_s=30.0, now_s=30.5)
    assert not actions(life, 30.9)
    life.excuse(pause_s=30.0, now_s=31.0)  # never makes a sign of the future
    assert life.silent_s(31.0) == 0


def test_backoff_doubles_to_its_bound_and_is_reset_by_a_stable_run() -> None:
    life, now_s = running(), 0.0
    delays = []
    for _ in range(9):
        delay_s = life.ended(now_s)
        assert delay_s is not None
        delays.append(delay_s)
        now_s += delay_s
        assert actions(life, now_s) == [Action.START]
        life.ready(now_s)
    assert delays == [0, 0.5, 1, 2, 4, 8, 16, 30, 30]
    assert life.ended(now_s + 60) == 0


def test_three_starts_without_readiness_are_the_last() -> None:
    life = ChildLife(LIMITS, 0.0)
    for now_s, delay_s in ((0.0, 0.0), (0.0, 0.5), (0.5, None)):
        assert actions(life, now_s) == [Action.START]
        assert life.ended(now_s) == delay_s
    assert actions(life, 1.0) == [Action.GIVE_UP] and not actions(life, 1000.0)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0, 10.0, 31.0, 61.0, 121.0]),
            st.sampled_from(["nothing", "ready", "beat", "end"]),
        ),
        max_size=60,
    )
)
def test_any_life(events: list[tuple[float, Event]]) -> None:
    """Starts only what has ended and waited, kills it once, gives up nothing that was ready."""
    life, now_s = ChildLife(LIMITS, 0.0), 0.0
    alive = killed = down = ever_ready = False
    ready_at_s: float | None = None
    due_s, deaths, starts = 0.0, 0, 0
    for wait_s, event in events:
        for action in actions(life, now_s):
            assert not down
            match action:
                case Action.START:
                    assert not alive and now_s >= due_s
                    alive, killed, ready_at_s = True, False, None
                    starts += 1
                case Action.SUSPECT:
                    assert alive and not killed and ready_at_s is not None
                case Action.KILL:
                    assert alive and not killed
                    killed = True
                case Action.GIVE_UP:
                    assert not alive and not ever_ready and starts == LIMITS.max_failed_starts
                    down = True
        assert alive or down or now_s < due_s
        now_s += wait_s
        if not alive:
            continue
        if event == "ready" and not killed and ready_at_s is None:
            ever_ready, ready_at_s = True, now_s
        if event == "ready":
            life.ready(now_s)
        if event == "beat":
            life.beat(now_s)
        if event == "end":
            stable = ready_at_s is not None and now_s - ready_at_s >= LIMITS.stable_s
            deaths = 1 if stable else deaths + 1
            expected_s = 0.0 if deaths == 1 else min(0.5 * 2 ** (deaths - 2), 30.0)
            alive, due_s = False, now_s + expected_s
            assert life.ended(now_s) in (expected_s, None)
