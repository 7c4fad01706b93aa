"""A backbone in stages, with a classifier after each stage."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

State = Tensor | tuple[Tensor, ...]


class MultiExitModel(nn.Module):
    """A backbone in K stages with an exit head after each.

    Stage k maps the state after stage k-1 (the input for k = 0) to its own state; exit head k maps
    that state to logits. Training and export use the same two lists, so the network that is trained
    is the one that is served. A state is one tensor, or a tuple of tensors if a backbone passes on
    several: scales, or hidden states and a mask.

    Args:
        stages: The backbone parts, K modules, state in and state out.
        heads: The exit heads, K modules, state in and logits (N, C) out.
        classes: Names of the C classes in the order of the logits. `eenet build --model` needs
            them; runs keep them elsewhere.

    Raises:
        ValueError: If the two lists differ in length or are empty.
    """

    def __init__(
        self,
        stages: Sequence[nn.Module],
        heads: Sequence[nn.Module],
        classes: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if not stages or len(stages) != len(heads):
            raise ValueError(
                f"a multi-exit model needs one head per stage, at least one; got {len(stages)} "
                f"stages and {len(heads)} heads"
            )
        self.stages = nn.ModuleList(stages)
        self.heads = nn.ModuleList(heads)
        self.classes = tuple(classes)

    @property
    def num_exits(self) -> int:
        """K, the number of exits, including the last one."""
        return len(self.heads)

    def forward(self, x: State) -> Tensor:
        """Return the logits of every exit, (K, N, C), for inputs x of N rows."""
        logits, state = [], x
        for stage, head in zip(self.stages, self.heads, strict=True):
            state = stage(state)
            logits.append(head(state))
        return torch.stack(logits)
