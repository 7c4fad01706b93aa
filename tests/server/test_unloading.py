import asyncio
from collections.abc import Iterator

import pytest

from server.engine.request import InferenceRequest
from server.errors import ServeError, UnknownModel
from server.schemas import Options
from server.unloading import drain, release_memory
from tests.server.test_dispatch import Front


@pytest.fixture
def front() -> Iterator[Front]:
    made = Front()
    yield made
    made.loop.close()


def drained(front: Front, timeout_s: float = 10.0) -> "asyncio.Task[None]":
    """The beginning of a drain."""
    clock = front.loop.time
    return front.loop.create_task(drain(front.dispatcher, timeout_s, clock))


def pass_time(front: Front, seconds: float = 0.1) -> None:
    front.loop.run_until_complete(asyncio.sleep(seconds))


def test_an_idle_model_is_drained_soon(front: Front) -> None:
    task = drained(front)
    pass_time(front)
    assert task.done()


def test_a_model_is_drained_once_its_requests_are_answered_or_gone(front: Front) -> None:
    answered, left = front.begin(), front.begin()
    task = drained(front)
    pass_time(front)
    assert not task.done() and not front.dispatcher.idle
    front.answer(answered)
    pass_time(front)
    assert not task.done()
    front.dispatcher.cancel(left)
    pass_time(front)
    assert task.done() and front.dispatcher.idle


def test_a_request_that_came_in_the_last_moment_is_answered_too(front: Front) -> None:
    task = drained(front)
    pass_time(front, 0)
    late = front.begin()
    pass_time(front)
    assert not task.done()
    front.answer(late)
    pass_time(front)
    assert task.done() and not isinstance(late.result, ServeError)


def test_what_comes_after_that_is_refused(front: Front) -> None:
    drained(front)
    pass_time(front)
    finished: list[InferenceRequest] = []
    request = front.dispatcher.begin(b"quick", Options(), 0.0, "id", finished.append)
    pass_time(front, 0)
    assert finished == [request]
    assert isinstance(request.result, UnknownModel)
    front.dispatcher.cancel(front.begin())


def test_requests_that_take_too_long_do_not_hold_up_the_end(front: Front) -> None:
    front.begin()
    task = drained(front, timeout_s=0.05)
    pass_time(front)
    assert task.done()


def test_memory_is_released() -> None:
    release_memory()
