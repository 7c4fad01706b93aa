"""Which requests are drawn to renew a promise: in the order of arrival, before they are decoded."""

import asyncio
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from models.backend import HeadOutput
from models.preprocess import InvalidInput, ModelInput
from server.dispatch import Dispatcher
from server.engine.request import InferenceRequest, Prediction
from server.quality.auditor import MOST_IN_FLIGHT, AuditSampler
from server.reports import EntryTerms
from server.schemas import Options

SLOW, BAD, SLOW_AND_BAD = b"slow", b"bad", b"slow and bad"
SAID = HeadOutput(np.zeros((1, 2), np.float32), np.zeros((1, 2), np.float32))
TERMS = EntryTerms(0, np.array([1.0]), np.array([1.0]), 1.0, 0.0, renews=True)


class Texts:
    """Decodes at once, but for slow payloads, and refuses bad ones."""

    def decode_if_small(self, payload: bytes) -> ModelInput | None:
        return None if payload.startswith(SLOW) else self(payload)

    def __call__(self, payload: bytes) -> ModelInput:
        if payload.endswith(BAD):
            raise InvalidInput("no text")
        return ModelInput((np.zeros((1, 2)),))


class Lanes:
    """Keeps what is to be decoded on a thread until `run`."""

    def __init__(self) -> None:
        self.quick = self
        self._waiting: list[tuple[Any, ...]] = []

    def submit(self, *work: Any) -> None:
        self._waiting.append(work)

    def run(self) -> None:
        waiting, self._waiting = self._waiting, []
        for act, *arguments in waiting:
            act(*arguments)


class Client:
    """Holds the requests that were submitted."""

    def __init__(self) -> None:
        self.held: list[InferenceRequest] = []

    def submit(self, requests: Sequence[InferenceRequest]) -> None:
        self.held += requests

    def cancel(self, requests: Sequence[InferenceRequest]) -> None:
        for request in requests:
            request.cancelled = True
        self.held = [each for each in self.held if each not in requests]

    def note_cancelled(self, count: int) -> None:
        """Counted elsewhere."""

    def note_delivery(self, now_s: float, took_s: float) -> None:
        """Noted elsewhere."""


class Front:
    """A dispatcher between fakes."""

    def __init__(self, share: float = 0.01) -> None:
        self.loop = asyncio.new_event_loop()
        self.client, self.lanes = Client(), Lanes()
        sampler = AuditSampler(share, random.Random(0))
        texts: Any = Texts()
        lanes: Any = self.lanes
        self.dispatcher = Dispatcher(texts, lanes, sampler, lambda: 0.0)
        self.dispatcher.start(self.client, self.loop, lambda: None)
        self.dispatcher.terms = TERMS

    def begin(self, payload: bytes = b"quick", **options: Any) -> InferenceRequest:
        return self.dispatcher.begin(payload, Options(**options), 0.0, "id", lambda request: None)

    def answer(self, request: InferenceRequest) -> None:
        self.client.held.remove(request)
        request.result = Prediction(0, SAID, 0, 1.0, 0.0, False, None)
        self.dispatcher.deliver([request], 0.0)

    def decode(self) -> None:
        """Let the lanes do their work, and the event loop what they have handed to it."""
        self.lanes.run()
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()


@pytest.fixture
def front() -> Iterator[Front]:
    made = Front()
    yield made
    made.loop.close()


def test_while_a_promise_is_renewed_every_request_is_drawn(front: Front) -> None:
    for _ in range(200):
        request = front.begin()
        assert request.audit is not None and request.audit.at_once
        front.answer(request)
    assert front.dispatcher.terms is not None
    front.dispatcher.terms = front.dispatcher.terms._replace(renews=False)
    later = [front.begin().audit for _ in range(200)]
    assert sum(audit is not None for audit in later) < 20
    assert not any(audit.at_once for audit in later if audit is not None)


def test_of_a_burst_the_first_to_arrive_are_drawn_not_the_first_to_be_decoded(
    front: Front,
) -> None:
    burst = [front.begin(SLOW if place % 3 == 0 else b"quick") for place in range(100)]
    front.decode()
    assert [each.audit is not None for each in burst] == [True] * 32 + [False] * 68
    order = [burst.index(each) for each in front.client.held]
    assert order != sorted(order), "the slow ones come last"
    for request in burst[:5]:
        front.answer(request)
    again = [front.begin() for _ in range(10)]
    assert [each.audit is not None for each in again] == [True] * 5 + [False] * 5


def test_requests_that_do_not_run_to_the_end_are_not_drawn_to_renew(front: Front) -> None:
    drawn = [front.begin(budget_ms=1.0).audit for _ in range(200)]
    assert not any(audit.at_once for audit in drawn if audit is not None)
    assert 0 < sum(audit is not None for audit in drawn) < 20
    assert all(front.begin(deadline_ms=10.0).audit is None for _ in range(10))


class Arrivals(RuleBasedStateMachine):
    """A request is drawn exactly if fewer than 32 that were drawn are still on their way."""

    def __init__(self) -> None:
        super().__init__()
        self.front = Front()
        self.open: list[InferenceRequest] = []

    def teardown(self) -> None:
        self.front.loop.close()

    @property
    def drawn(self) -> int:
        return sum(each.audit is not None for each in self.open)

    @rule(count=st.integers(1, 40), payload=st.sampled_from([b"quick", SLOW, BAD, SLOW_AND_BAD]))
    def come(self, count: int, payload: bytes) -> None:
        for _ in range(count):
            expected = self.drawn < MOST_IN_FLIGHT
            request = self.front.begin(payload)
            assert (request.audit is not None) == expected
            if request.result is None:
                self.open.append(request)

    @rule()
    def decode(self) -> None:
        self.front.decode()
        self.open = [each for each in self.open if each.result is None]

    @precondition(lambda self: self.front.client.held)
    @rule(data=st.data(), count=st.integers(1, 20))
    def answer(self, data: st.DataObject, count: int) -> None:
        for _ in range(min(count, len(self.front.client.held))):
            request = data.draw(st.sampled_from(self.front.client.held))
            self.front.answer(request)
            self.open.remove(request)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), twice=st.booleans())
    def leave(self, data: st.DataObject, twice: bool) -> None:
        request = data.draw(st.sampled_from(self.open))
        for _ in range(1 + twice):
            self.front.dispatcher.cancel(request)
        self.open.remove(request)

    @invariant()
    def no_more_than_the_bound(self) -> None:
        assert self.drawn <= MOST_IN_FLIGHT


def test_what_has_ended_in_any_way_makes_room_for_the_next() -> None:
    run_state_machine_as_test(Arrivals)
