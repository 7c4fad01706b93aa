from server.engine.request import InferenceRequest
from server.errors import InferenceFailed
from tests.fakes import FakeBackend
from tests.server.engine.harness import engine_of, run_out, serve, sure


def test_a_batch_that_is_too_large_for_memory_is_halved_and_so_are_those_after_it() -> None:
    backend = FakeBackend(memory=3)
    engine = engine_of(backend, parameter=1.0, max_batch=16)
    engine.submit([InferenceRequest(sure(0.6, 0.6, 0.95)) for _ in range(50)])
    run_out(engine)
    sizes = [len(shown) for _, shown in backend.batches]
    assert sizes[:3] == [16, 8, 4], "halved until it fits"
    fitting = [size for size in sizes if size <= 3]
    assert sum(fitting) == 150, "no row runs a stage again that it has been through"
    assert max(sizes[-60:]) == 2 and not engine.failed


def test_only_the_row_that_is_too_large_by_itself_fails_for_lack_of_memory() -> None:
    rows = [InferenceRequest(sure(0.6, 0.95, 0.95)) for _ in range(7)]
    rows[4].state = sure(0.6, FakeBackend.HUGE, 0.95)
    done = serve(rows, max_batch=7)
    failed = [index for index in range(7) if isinstance(done[index].result, InferenceFailed)]
    assert failed == [4] and len(done) == 7


def test_larger_batches_may_be_allowed_while_it_runs() -> None:
    backend = FakeBackend()
    engine = engine_of(backend, max_batch=1)
    engine.max_batch = 8
    engine.submit([InferenceRequest(sure(0.95, 0.95, 0.95)) for _ in range(16)])
    run_out(engine)
    assert [len(shown) for _, shown in backend.batches] == [8, 8]
