from server.processes.black_box import BlackBox, create
from server.processes.links import EngineProcess


def test_draws_are_counted_by_model_and_taken_once() -> None:
    descriptor = create()
    engine, control = BlackBox(descriptor), BlackBox(descriptor)
    for model in (0, 2, 2):
        engine.count_draw(model)
    assert [control.take_drawn(model) for model in range(3)] == [1, 0, 2]
    assert [control.take_drawn(model) for model in range(3)] == [0, 0, 0]
    engine.count_draw(1)
    BlackBox(descriptor).clear()  # as the next engine does
    assert control.take_drawn(1) == 0


def test_what_an_engine_drew_and_never_told_the_end_of_is_lost_with_it() -> None:
    process = EngineProcess(0)
    engine = BlackBox(process.descriptor)
    for _ in range(5):
        engine.count_draw(0)
    process.audits_settled[0] += 3
    assert process.take_lost_audits(0) == 2
    assert process.take_lost_audits(0) == process.take_lost_audits(1) == 0
