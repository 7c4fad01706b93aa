import pytest
import torch
from torch import nn

from models.networks.multi_exit import MultiExitModel


class Plus(nn.Module):
    def __init__(self, amount: float) -> None:
        super().__init__()
        self.amount = amount

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.amount


def test_each_head_reads_the_state_behind_its_own_stage() -> None:
    model = MultiExitModel([Plus(1), Plus(10), Plus(100)], [Plus(0.25), Plus(0.5), Plus(0.75)])
    logits = model(torch.zeros(2, 4))
    assert logits.shape == (3, 2, 4)
    assert logits[:, 0, 0].tolist() == [1.25, 11.5, 111.75]
    assert model.num_exits == 3


@pytest.mark.parametrize(("stages", "heads"), [(0, 0), (1, 0), (1, 2), (2, 1)])
def test_stages_and_heads_must_pair_up(stages: int, heads: int) -> None:
    with pytest.raises(ValueError, match=f"got {stages} stages and {heads} heads"):
        MultiExitModel([nn.Identity()] * stages, [nn.Identity()] * heads)


def test_a_state_may_be_several_tensors() -> None:
    class Split(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, 2 * x

    class Swap(nn.Module):
        def forward(
            self, state: tuple[torch.Tensor, torch.Tensor]
        ) -> tuple[torch.Tensor, torch.Tensor]:
            return state[1], state[0]

    class First(nn.Module):
        def forward(self, state: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            return state[0]

    logits = MultiExitModel([Split(), Swap()], [First(), First()])(torch.ones(3, 2))
    assert logits.shape == (2, 3, 2)
    assert logits[:, 0, 0].tolist() == [1.0, 2.0]
