"""What a served exit head says."""

from torch import Tensor, nn

from models.networks.fcn import coarse_grid
from models.networks.multi_exit import State


class ServedHead(nn.Module):
    """An exit head that also gives log-probabilities, as policies read them.

    Args:
        head: From a state to logits (A, C), or of a segmentation (A, H, W, C).
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, state: State) -> tuple[Tensor, Tensor]:
        """Logits and log-probabilities, of a segmentation on the grid of its policies."""
        logits = self.head(state)
        is_mask = logits.ndim == 4
        return logits, coarse_grid(logits) if is_mask else logits.log_softmax(-1)
