from functools import partial

from benchmarks.virtual_time import VirtualTime


def test_what_is_due_happens_on_the_way_in_order_and_at_its_time() -> None:
    time, seen = VirtualTime(), list[tuple[str, float]]()

    def note(name: str) -> None:
        seen.append((name, time.clock()))

    for name, when_s in (("late", 3.0), ("first", 1.0), ("second", 1.0), ("last", 9.0)):
        time.at(when_s, partial(note, name))
    time.sleep(4.0)
    assert seen == [("first", 1.0), ("second", 1.0), ("late", 3.0)]
    assert time.clock() == 4.0
    assert time.skip() and seen[-1] == ("last", 9.0)
    assert not time.skip() and time.clock() == 9.0


def test_what_happens_may_ask_for_more() -> None:
    time, seen = VirtualTime(), list[float]()

    def again() -> None:
        seen.append(time.clock())
        if len(seen) < 3:
            time.at(time.clock() + 1.0, again)

    time.at(1.0, again)
    time.sleep(10.0)
    assert seen == [1.0, 2.0, 3.0]


def test_what_was_due_in_the_past_happens_now() -> None:
    time, seen = VirtualTime(), list[float]()
    time.sleep(5.0)
    time.at(1.0, lambda: seen.append(time.clock()))
    time.sleep(0.0)
    assert seen == [5.0]
