"""Start the last exit from a pretrained classifier, if its classes are those of the dataset."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from models.data.dataset import Dataset
from models.networks.attach import Head
from models.networks.multi_exit import MultiExitModel
from models.networks.pretrained_files import MULTI_LABEL
from models.training.class_match import ClassMatch, match_classes

log = logging.getLogger(__name__)


def adopt_head(
    name: str, model: MultiExitModel, backbone: Mapping[str, Any], data: Dataset, head: Head
) -> ClassMatch:
    """Put the outputs of the last exit into the dataset's order, or start them anew; log which.

    Args:
        name: The backbone's, for messages.
        model: The network with the backbone's classifier as its last exit; changed in place.
        backbone: Configuration of the backbone.
        data: The dataset.
        head: Whether the last exit has the backbone's classifier.

    Returns:
        The names of the classes, and why the head was used or not.

    Raises:
        ValueError: If the backbone was fine-tuned for several labels per row and the dataset has
            one.
    """
    match = match_classes(data.classes, backbone.get("id2label") or {})
    was_multi_label = backbone.get("problem_type") == MULTI_LABEL
    is_multi_label = data.train.labels.ndim == 2
    if was_multi_label and not is_multi_label and head != "absent":
        raise ValueError(
            f"{name} was fine-tuned for several labels per row ({MULTI_LABEL}), and each row of "
            f"the dataset has one; give --label-separator or one column per class, or the encoder "
            f"that it was made from"
        )
    if head == "absent":
        log.info("%s has no classifier: the last exit starts anew", name)
        return match
    if is_multi_label and not was_multi_label:
        match = match._replace(order=None, sentence="it was fine-tuned for one label per row")
    if match.order is None:
        reason = match.sentence
        log.warning("the classifier of %s is not used: %s; the last exit starts anew", name, reason)
        _start_anew(_linear(model), backbone)
        return match
    log.info("the last exit starts from the classifier of %s: %s", name, match.sentence)
    _reorder(_linear(model), match.order)
    return match


def _linear(model: MultiExitModel) -> nn.Linear:
    linear = model.heads[-1].linear
    assert isinstance(linear, nn.Linear), "every head ends with a linear layer"
    return linear


@torch.no_grad()
def _reorder(linear: nn.Linear, order: tuple[int, ...]) -> None:
    places = list(order)
    linear.weight.copy_(linear.weight[places].clone())
    linear.bias.copy_(linear.bias[places].clone())


@torch.no_grad()
def _start_anew(linear: nn.Linear, backbone: Mapping[str, Any]) -> None:
    linear.weight.normal_(0.0, float(backbone.get("initializer_range") or 0.02))
    linear.bias.zero_()
