"""Training loss: cross-entropy of all exits, and distillation from the last exit."""

import torch
import torch.nn.functional as F
from torch import Tensor


def exit_weights(num_exits: int) -> list[float]:
    """Return gamma_k = k / (K (K + 1)) for k = 1..K, as in Ilhan et al. 2024, section 3.1."""
    return [k / (num_exits * (num_exits + 1)) for k in range(1, num_exits + 1)]


def joint_loss(logits: Tensor, labels: Tensor, distill_weight: float, temperature: float) -> Tensor:
    """Add up the weighted cross-entropy of all exits and the distillation loss of earlier exits.

    The loss is the mean over rows (for segmentation over pixels) of
    `sum_k gamma_k CE_k + alpha_KL sum_{k<K} tau^2 KL(softmax(z_K / tau) || softmax(z_k / tau))`
    (Ilhan et al. 2024, section 3.1). No gradient flows into the last exit as teacher.

    Args:
        logits: Logits of all exits, (K, N, C) or (K, N, H, W, C).
        labels: Labels (N,) or masks (N, H, W).
        distill_weight: Weight of the distillation loss, alpha_KL; 0 leaves it out.
        temperature: Temperature of the distillation, tau.

    Returns:
        The loss, a scalar.
    """
    logits, labels = logits.flatten(1, -2), labels.flatten()
    losses = [F.cross_entropy(z, labels) for z in logits]
    loss = torch.stack(
        [gamma * ce for gamma, ce in zip(exit_weights(len(losses)), losses, strict=True)]
    ).sum()
    if distill_weight and len(losses) > 1:
        teacher = F.log_softmax(logits[-1].detach() / temperature, -1)
        students = F.log_softmax(logits[:-1] / temperature, -1)
        divergence = F.kl_div(
            students, teacher.expand_as(students), log_target=True, reduction="none"
        ).sum(-1)
        loss = loss + distill_weight * temperature**2 * divergence.mean(1).sum()
    return loss
