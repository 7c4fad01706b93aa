import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from models.networks.label_sets import set_thresholds, with_label_sets
from models.networks.multi_exit import MultiExitModel
from models.training.loss import exit_weights, joint_loss


def make_model() -> tuple[MultiExitModel, MultiExitModel]:
    torch.manual_seed(0)
    plain = MultiExitModel([nn.Identity(), nn.Identity()], [nn.Linear(4, 3), nn.Linear(4, 3)])
    return plain, with_label_sets(plain, 3)


def test_the_loss_is_binary_cross_entropy() -> None:
    plain, model = make_model()
    x, labels = torch.randn(5, 4), torch.randint(0, 2, (5, 3))
    expected = sum(
        weight * F.binary_cross_entropy_with_logits(z, labels.float())
        for weight, z in zip(exit_weights(2), plain(x), strict=True)
    )
    torch.testing.assert_close(joint_loss(model(x), labels, 0.0, 1.0), expected)


def test_a_label_is_likelier_than_not_from_its_threshold_on() -> None:
    plain, model = make_model()
    thresholds = np.array([[0.2, 0.5, 0.9], [0.5, 0.6, 0.1]])
    set_thresholds(model, thresholds)
    x = torch.randn(50, 4)
    has = model(x).argmax(-1).bool()
    assert (has == (plain(x).sigmoid() > torch.from_numpy(thresholds)[:, None])).all()
