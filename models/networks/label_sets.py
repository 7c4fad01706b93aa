"""Exit heads for rows that may have several labels."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.networks.multi_exit import MultiExitModel, State


class LabelSetHead(nn.Module):
    """A head whose logits are those of "has it not" and "has it" for each label.

    Cross-entropy over these two classes is the binary cross-entropy of a sigmoid per label.

    Args:
        head: Maps a state to one logit per label, (N, C).
        num_labels: C.
    """

    def __init__(self, head: nn.Module, num_labels: int) -> None:
        super().__init__()
        self.head = head
        # The log-odds of the thresholds: where a logit is equal, both classes are as likely.
        self.shift = nn.Buffer(torch.zeros(num_labels))

    def forward(self, state: State) -> Tensor:
        """Map a state to logits (N, C, 2)."""
        has: Tensor = self.head(state) - self.shift
        return torch.stack([torch.zeros_like(has), has], -1)


def with_label_sets(model: MultiExitModel, num_labels: int) -> MultiExitModel:
    """Return the network with heads for rows of several labels."""
    heads = [LabelSetHead(head, num_labels) for head in model.heads]
    return MultiExitModel(list(model.stages), heads)


@torch.no_grad()
def set_thresholds(model: MultiExitModel, thresholds: NDArray[np.float64]) -> None:
    """Set the thresholds of all exits and labels, (K, C), above 0 and below 1."""
    for head, each in zip(model.heads, thresholds, strict=True):
        assert isinstance(head, LabelSetHead), "only heads of label sets have thresholds"
        shift = torch.from_numpy(np.log(each) - np.log1p(-each))
        head.shift.copy_(shift)
