"""Chooses the thresholds of labels, on the calibration rows of a network."""

import numpy as np
import torch
from numpy.typing import NDArray

from models.data.dataset import Split
from models.export.onnx_graphs import as_tensors
from models.label_sets import fit_thresholds
from models.networks.label_sets import set_thresholds
from models.networks.multi_exit import MultiExitModel
from models.preprocess import ImagePreprocessor, TextPreprocessor
from profiling.recording import served_states


@torch.inference_mode()
def choose_thresholds(
    model: MultiExitModel, preprocess: ImagePreprocessor | TextPreprocessor, rows: Split
) -> list[list[float]]:
    """Choose the threshold of each label at each exit by F1, and set them in the network, (K, C).

    Args:
        model: The network, with heads for label sets; changed in place.
        preprocess: Its preprocessing.
        rows: The calibration rows.
    """
    model.eval()
    num_exits, num_labels = model.num_exits, rows.labels.shape[1]
    set_thresholds(model, np.full((num_exits, num_labels), 0.5))
    probs: NDArray[np.float64] = np.empty((num_exits, *rows.labels.shape))
    for places, state in served_states(preprocess, rows):
        probs[:, places] = model(as_tensors(state)).double().softmax(-1)[..., 1].numpy()
    thresholds = np.stack([fit_thresholds(each, rows.labels) for each in probs]).round(4)
    set_thresholds(model, thresholds)
    found: list[list[float]] = thresholds.tolist()
    return found
