import numpy as np
import pytest
import torch
from torch import Tensor

from models.training.loss import exit_weights, joint_loss


def test_exit_weights_grow_towards_the_last_exit() -> None:
    assert exit_weights(3) == pytest.approx([1 / 12, 2 / 12, 3 / 12])
    assert exit_weights(1) == [0.5]


def test_the_joint_loss_is_that_of_the_paper() -> None:
    first, last = np.array([[1.0, 2.0], [0.5, -1.0]]), np.array([[0.0, 3.0], [1.0, 1.0]])
    labels, alpha, tau = np.array([1, 0]), 0.3, 3.0

    def softmax(z: np.ndarray) -> np.ndarray:
        return np.exp(z) / np.exp(z).sum(1, keepdims=True)

    def cross_entropy(z: np.ndarray) -> float:
        return float(-np.log(softmax(z)[[0, 1], labels]).mean())

    teacher, student = softmax(last / tau), softmax(first / tau)
    divergence = (teacher * np.log(teacher / student)).sum(1).mean()
    expected = cross_entropy(first) / 6 + cross_entropy(last) * 2 / 6 + alpha * tau**2 * divergence
    logits = torch.tensor(np.stack([first, last]))
    assert joint_loss(logits, torch.tensor(labels), alpha, tau).item() == pytest.approx(expected)


def test_distillation_teaches_the_earlier_exits_only() -> None:
    labels = torch.tensor([0, 1, 2])

    def gradient(distill_weight: float) -> Tensor:
        logits = torch.randn(3, 3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
        joint_loss(logits, labels, distill_weight, 3.0).backward()
        assert logits.grad is not None
        return logits.grad

    plain, taught = gradient(0.0), gradient(1.0)
    assert torch.equal(plain[-1], taught[-1])
    assert not torch.allclose(plain[0], taught[0]) and not torch.allclose(plain[1], taught[1])


def test_a_single_exit_has_nobody_to_teach() -> None:
    logits, labels = torch.randn(1, 4, 3), torch.tensor([0, 1, 2, 0])
    assert joint_loss(logits, labels, 1.0, 3.0) == joint_loss(logits, labels, 0.0, 3.0)


@pytest.mark.parametrize("distill_weight", [0.0, 0.3])
def test_of_a_segmentation_every_pixel_counts_as_a_row(distill_weight: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 2, 4, 6, 5, generator=generator).permute(0, 1, 3, 2, 4)
    masks = torch.randint(0, 5, (2, 6, 4), generator=generator)
    rows = torch.stack([exit[n, i, j] for exit in logits for n, i, j in np.ndindex(2, 6, 4)])
    labels = torch.stack([masks[pixel] for pixel in np.ndindex(2, 6, 4)])
    flattened = joint_loss(rows.reshape(3, 48, 5), labels, distill_weight, 2.0)
    loss = joint_loss(logits, masks, distill_weight, 2.0)
    assert loss.shape == ()
    torch.testing.assert_close(loss, flattened)


def test_a_wrong_pixel_costs_the_same_wherever_it_is() -> None:
    masks, right = torch.zeros(2, 3, 4, dtype=torch.int64), torch.zeros(2, 2, 3, 4, 2)
    right[..., 0] = 5
    losses = []
    for pixel in np.ndindex(2, 3, 4):
        wrong = right.clone()
        wrong[(slice(None), *pixel)] = torch.tensor([0.0, 5.0])
        losses.append(joint_loss(wrong, masks, 0.1, 3.0).item())
    assert losses == pytest.approx([losses[0]] * 24)
    assert losses[0] > joint_loss(right, masks, 0.1, 3.0).item()
