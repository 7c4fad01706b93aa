"""Where the parts of encoders and their classifiers are in transformers. A family is one entry."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import nn

from models.networks.encoder_parts import (
    Parts,
    albert_parts,
    deberta_parts,
    modernbert_parts,
    mpnet_parts,
    plain_parts,
)


class Layout(NamedTuple):
    """The places of the parts of an encoder and its classifier in transformers.

    Attributes:
        classifier: The class that holds both.
        layers: The list of layers inside the encoder.
        linear: The classifier's last layer.
        pooler: The layer before it, if there is one.
        activation: The activation after the pooler.
        activation_setting: The setting with the name of another activation.
        pooled_norm: The norm after the activation, if there is one.
        norm: The norm of the last hidden states, if the classifier does it and no layer.
        num_layers: The setting with the number of layers.
        dropout: The setting with the classifier's dropout.
        counts_from_pad_id: Whether positions start at the padding's id plus one instead of 0.
        parts: Takes the encoder apart.
        has_segments: Whether it tells the texts of a pair apart, if it has types of tokens.
    """

    classifier: str
    layers: str = "encoder.layer"
    linear: str = "classifier.out_proj"
    pooler: str | None = "classifier.dense"
    activation: Callable[[], nn.Module] = nn.Tanh
    activation_setting: str | None = None
    pooled_norm: str | None = None
    norm: str | None = None
    num_layers: str = "num_hidden_layers"
    dropout: str = "classifier_dropout"
    counts_from_pad_id: bool = False
    parts: Callable[[Any, str], Parts] = plain_parts
    has_segments: bool = False

    @property
    def head(self) -> tuple[str, ...]:
        """Starts of the names of the classifier's weights."""
        parts = (self.linear, self.pooler, self.pooled_norm)
        return tuple(f"{part}." for part in parts if part is not None)


VIT = Layout(
    "ViTForImageClassification",
    layers="layers",
    linear="classifier",
    pooler=None,
    norm="layernorm",
    dropout="hidden_dropout_prob",
)
LAYOUTS = {
    "bert": Layout(
        "BertForSequenceClassification",
        linear="classifier",
        pooler="bert.pooler.dense",
        has_segments=True,
    ),
    "roberta": Layout("RobertaForSequenceClassification", counts_from_pad_id=True),
    "xlm-roberta": Layout("XLMRobertaForSequenceClassification", counts_from_pad_id=True),
    "distilbert": Layout(
        "DistilBertForSequenceClassification",
        layers="transformer.layer",
        linear="classifier",
        pooler="pre_classifier",
        activation=nn.ReLU,
        num_layers="n_layers",
        dropout="seq_classif_dropout",
    ),
    "electra": Layout("ElectraForSequenceClassification", activation=nn.GELU, has_segments=True),
    "albert": Layout(
        "AlbertForSequenceClassification",
        layers="encoder.albert_layer_groups",
        linear="classifier",
        pooler="albert.pooler",
        dropout="classifier_dropout_prob",
        parts=albert_parts,
        has_segments=True,
    ),
    "mpnet": Layout(
        "MPNetForSequenceClassification",
        dropout="hidden_dropout_prob",
        counts_from_pad_id=True,
        parts=mpnet_parts,
    ),
    "deberta-v2": Layout(
        "DebertaV2ForSequenceClassification",
        linear="classifier",
        pooler="pooler.dense",
        activation_setting="pooler_hidden_act",
        dropout="cls_dropout",
        parts=deberta_parts,
        has_segments=True,
    ),
    "modernbert": Layout(
        "ModernBertForSequenceClassification",
        layers="layers",
        linear="classifier",
        pooler="head.dense",
        activation_setting="classifier_activation",
        pooled_norm="head.norm",
        norm="final_norm",
        parts=modernbert_parts,
    ),
    "vit": VIT,
    "deit": VIT._replace(classifier="DeiTForImageClassification"),
}


def layout_of(backbone: Mapping[str, Any]) -> Layout:
    """Return the layout of a backbone by its configuration.

    Raises:
        ValueError: If exits cannot be added to its kind.
    """
    model_type = backbone.get("model_type")
    if model_type not in LAYOUTS:
        raise ValueError(
            f"exits cannot be added to a backbone of model_type {model_type!r}; use "
            f"{', '.join(LAYOUTS)}"
        )
    return LAYOUTS[model_type]
