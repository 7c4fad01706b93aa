from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from models.runtime.cuda_graphs import Captured, CapturedSteps, Step, Tensors, capture_on

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")


class Recorder:
    """Captures a step as a GPU does: a replay runs it again on the same tensors."""

    def __init__(self) -> None:
        self.shapes: list[list[int]] = []
        self.replays = 0

    def __call__(self, step: Step, values: Tensors) -> Captured:
        self.shapes.append(list(values[0].shape))
        inputs = tuple(value.clone() for value in values)
        outputs = tuple(output.clone() for output in step(inputs))

        def replay() -> None:
            self.replays += 1
            for output, new in zip(outputs, step(inputs), strict=True):
                output.copy_(new)

        return Captured(inputs, replay, outputs)


def double(values: Tensors) -> Tensors:
    return values[0] * 2, values[-1] + 1


def test_a_step_is_captured_once_for_each_shape() -> None:
    recorder = Recorder()
    step = CapturedSteps(recorder).step(double)
    for rows in (1, 4, 1, 4, 4):
        value = torch.full((rows, 2), float(rows))
        doubled, more = step((value,))
        assert doubled.equal(value * 2) and more.equal(value + 1)
    assert recorder.shapes == [[1, 2], [4, 2]] and recorder.replays == 5


def test_steps_of_a_network_are_captured_apart() -> None:
    recorder = Recorder()
    steps = CapturedSteps(recorder)
    first, second = steps.step(double), steps.step(lambda values: (values[0] - 1,))
    value = torch.ones(3)
    assert second((first((value,))[0],))[0].equal(value)
    assert len(recorder.shapes) == 2


def test_what_a_step_gave_stays_when_it_runs_again() -> None:
    step = CapturedSteps(Recorder()).step(double)
    (first, _), (second, _) = step((torch.ones(2),)), step((torch.zeros(2),))
    assert first.tolist() == [2, 2] and second.tolist() == [0, 0]


def test_threads_get_their_own_answers() -> None:
    step = CapturedSteps(Recorder()).step(double)

    def run(number: int) -> Tensor:
        return step((torch.full((3,), float(number)),))[0]

    with ThreadPoolExecutor(4) as pool:
        for number, doubled in enumerate(pool.map(run, range(200))):
            assert doubled.tolist() == [2 * number] * 3


@pytest.mark.gpu
@needs_gpu
def test_a_gpu_replays_what_it_captured() -> None:
    step = CapturedSteps(capture_on(torch.device("cuda"))).step(double)
    for number in (1.0, 2.0, 3.0):
        value = torch.full((4, 2), number, device="cuda")
        assert step((value,))[0].equal(value * 2)
