"""Add exits to a pretrained encoder from transformers, for text or images."""

import copy
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from models.bundle import Task
from models.networks.encoder import Embed, PooledHead, check_exits, encoder_stages
from models.networks.encoder_layouts import LAYOUTS as LAYOUTS
from models.networks.encoder_layouts import Layout, layout_of
from models.networks.family import Family, check_count
from models.networks.multi_exit import MultiExitModel
from models.networks.pretrained_files import check_files, check_task, encoder_of, pooling_of

# Settings that change the computation or the input, and the only supported value of each.
KNOWN_SETTINGS = {
    "is_decoder": False,
    "num_channels": 3,
    "position_embedding_type": "absolute",
    "inner_group_num": 1,
    "quantization_config": None,
}
# Settings that describe the file of a backbone, not the network.
LEFT_OUT = ("_name_or_path", "architectures", "dtype", "transformers_version")


@dataclass(frozen=True)
class AttachedConfig:
    """A backbone and the places of its exits: enough to rebuild the network without its weights.

    Attributes:
        backbone: The configuration of transformers as plain JSON values.
        exits_after_layer: Layers, counted from 1, that an exit follows; the last entry is the last
            layer.
        num_labels: C.
        separator_id: Token between the texts of a pair, for a backbone that tells them apart by
            segments; None: it reads single texts, or has no segments.
        pooling: What exits read: `mean`, the mean of all tokens; None: the first token, or what
            the backbone's classifier reads.
    """

    backbone: Mapping[str, Any]
    exits_after_layer: Sequence[int]
    num_labels: int
    separator_id: int | None = None
    pooling: Literal["mean"] | None = None

    def __post_init__(self) -> None:
        layout = layout_of(self.backbone)
        for name, known in KNOWN_SETTINGS.items():
            if (value := self.backbone.get(name, known)) != known:
                raise ValueError(
                    f"the backbone's {name} is {value!r}; exits can be added only if its {name} is "
                    f"{known!r}"
                )
        check_count("num_labels", self.num_labels)
        check_exits(self.exits_after_layer, self.backbone[layout.num_layers])


def has_segments(config: AttachedConfig) -> bool:
    """Return whether the backbone tells the two texts of a pair apart by segments."""
    layout, types = layout_of(config.backbone), config.backbone.get("type_vocab_size", 0)
    return layout.has_segments and bool(types > 1)


def max_tokens(config: AttachedConfig) -> int | None:
    """Return the most tokens of a text; None for images."""
    if image_input(config):
        return None
    backbone = config.backbone
    positions: int = backbone["max_position_embeddings"]
    skipped = backbone["pad_token_id"] + 1 if layout_of(backbone).counts_from_pad_id else 0
    return positions - skipped


def image_input(config: AttachedConfig) -> tuple[int, int] | None:
    """Return height and width of the images; None for text."""
    size = config.backbone.get("image_size")
    if isinstance(size, int):
        return size, size
    return (size[0], size[1]) if size else None


def attached_encoder(config: AttachedConfig) -> MultiExitModel:
    """Build an encoder with a classifier at each exit.

    For text, the input is token ids (N, L) int64, in which the backbone's padding id is padding, or
    a tuple of ids and an attention mask (N, L), 0 where a token is padding. The state is a tuple of
    hidden states (N, L, D) and the mask (N, L) int64. Padding changes no prediction. For images,
    the input is pixels (N, 3, H, W) and the state is hidden states (N, L, D).

    The last exit is the classifier that transformers gives the backbone. Earlier exits are a pooler
    with the same activation and a linear layer. If the backbone normalises its last hidden states,
    each exit has a norm of its own.

    Args:
        config: The backbone and its exits.

    Returns:
        The model, randomly initialised, with K = len(exits_after_layer).
    """
    import transformers  # takes seconds; other networks do not need it

    classifier = getattr(transformers, layout_of(config.backbone).classifier)
    return _with_exits(config, classifier(_transformers_config(config)))


def describe(backbone: str | Path) -> AttachedConfig:
    """Read the configuration of a pretrained encoder, but not its weights.

    Args:
        backbone: A folder that `save_pretrained` wrote, or a name on the Hugging Face hub.

    Returns:
        The backbone with one exit, after its last layer, and one label.

    Raises:
        ValueError: If there is no such backbone, or exits cannot be added to it.
    """
    from transformers import AutoConfig, PreTrainedConfig

    if (Path(backbone) / "adapter_config.json").exists():
        raise ValueError(
            f"{backbone} holds adapters; merge them into their backbone (peft's merge_and_unload) "
            f"and save the result"
        )
    pooling = pooling_of(backbone)
    backbone = encoder_of(backbone)
    check_files(backbone)
    message = (
        f"{backbone} is neither a folder with the config.json that save_pretrained writes nor a "
        f"model of the Hugging Face hub that can be reached from here"
    )
    try:
        values, _ = PreTrainedConfig.get_config_dict(backbone)
    except OSError as error:
        raise ValueError(message) from error
    if not values:  # a folder without the file
        raise ValueError(message)
    if values.get("auto_map"):
        raise ValueError(
            f"{backbone} needs code of its own (auto_map in its config.json), which is not run; "
            f"give a model whose code is part of transformers"
        )
    check_task(backbone, values)
    layout = layout_of(values)
    known = {name: value for name, value in values.items() if name not in LEFT_OUT}
    try:
        filled = AutoConfig.for_model(**known).to_dict()
    except Exception as error:  # transformers raises types of its own
        raise ValueError(
            f"the config.json of {backbone} holds a value that transformers refuses; give the "
            f"folder that save_pretrained wrote"
        ) from error
    plain = json.loads(json.dumps(filled))  # label ids become text
    kept = {name: value for name, value in plain.items() if name not in LEFT_OUT}
    exits = (kept[layout.num_layers],)
    return AttachedConfig(kept, exits, num_labels=1, pooling=pooling)


Head = Literal["kept", "absent", "of other size"]


class Attached(NamedTuple):
    """A pretrained encoder with exits.

    Attributes:
        config: The configuration that rebuilds the network.
        model: The network in single precision.
        head: Whether the last exit has the backbone's classifier. If it has no classifier, or one
            of another number of classes, the last exit is random.
    """

    config: AttachedConfig
    model: MultiExitModel
    head: Head


def attach(
    backbone: str | Path, exits_after_layer: Sequence[int], num_labels: int
) -> tuple[AttachedConfig, MultiExitModel]:
    """Add exits to a pretrained encoder; returns configuration and network of `load_attached`."""
    attached = load_attached(backbone, exits_after_layer, num_labels)
    return attached.config, attached.model


def load_attached(
    backbone: str | Path,
    exits_after_layer: Sequence[int],
    num_labels: int,
    separator_id: int | None = None,
) -> Attached:
    """Add exits to a pretrained encoder, fine-tuned or not.

    The last exit starts from the backbone's classifier, if it has one. A backbone that was
    fine-tuned on the same number of labels predicts the same there as before.

    Args:
        backbone: As for `describe`.
        exits_after_layer: As in `AttachedConfig`.
        num_labels: C.
        separator_id: As in `AttachedConfig`.

    Raises:
        ValueError: If there is no such backbone, exits cannot be added to it or not at these
            layers, or its weights do not match its configuration.
    """
    import transformers
    from transformers.utils.logging import get_verbosity, set_verbosity

    config = replace(
        describe(backbone),
        exits_after_layer=tuple(exits_after_layer),
        num_labels=num_labels,
        separator_id=separator_id,
    )
    layout, verbosity = layout_of(config.backbone), get_verbosity()
    set_verbosity(logging.ERROR)  # its warnings about weights are handled below
    try:
        classifier, report = getattr(transformers, layout.classifier).from_pretrained(
            encoder_of(backbone),
            config=_transformers_config(config),
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except Exception as error:  # transformers and safetensors raise many types
        raise ValueError(
            f"{backbone} has a config.json, but transformers cannot load the weights that belong "
            f"to it; give the folder that save_pretrained wrote"
        ) from error
    finally:
        set_verbosity(verbosity)
    new = report["missing_keys"] | {key for key, *_ in report["mismatched_keys"]}
    if lacking := sorted(key for key in new if not key.startswith(layout.head)):
        raise ValueError(
            f"{backbone} lacks {lacking[0]!r} of its {config.backbone['model_type']} or holds it "
            f"in another shape, {len(lacking)} such in all; give the folder that save_pretrained "
            f"wrote"
        )
    parts = {f"{layout.linear}.weight", f"{layout.linear}.bias"}
    head: Head = "absent" if parts & report["missing_keys"] else "kept"
    if parts & new and head == "kept":
        head = "of other size"
    return Attached(config, _with_exits(config, classifier), head)


def _transformers_config(config: AttachedConfig) -> Any:
    from transformers import AutoConfig

    labels = ("id2label", "label2id")
    sizes = {name: value for name, value in config.backbone.items() if name not in labels}
    return AutoConfig.for_model(**sizes, num_labels=config.num_labels)


def _with_exits(config: AttachedConfig, classifier: Any) -> MultiExitModel:
    """Cut a transformers model into stages; its classifier becomes the last exit."""
    layout, settings = layout_of(config.backbone), classifier.config
    encoder = classifier.base_model
    parts = layout.parts(encoder, layout.layers)
    embed = parts.embed
    if not image_input(config):
        # The padding's id is null in some old files.
        pad_id = settings.pad_token_id or 0
        embed = Embed(embed, pad_id, config.separator_id, takes_mask=parts.embeds_mask)
    stages = encoder_stages(embed, parts.layers, config.exits_after_layer, parts.terms)

    def new_head() -> PooledHead:
        return _head(
            config,
            settings,
            nn.Linear(settings.hidden_size, settings.hidden_size),
            nn.Linear(settings.hidden_size, config.num_labels),
            _activation(layout, classifier),
            copy.deepcopy(norm),
        )

    norm = encoder.get_submodule(layout.norm) if layout.norm else None
    heads = [new_head() for _ in stages[1:]]
    pooler = classifier.get_submodule(layout.pooler) if layout.pooler else nn.Identity()
    activation = _activation(layout, classifier) if layout.pooler else nn.Identity()
    linear = classifier.get_submodule(layout.linear)
    last = _head(config, settings, pooler, linear, activation, norm)
    return MultiExitModel(stages, [*heads, last])


def _head(
    config: AttachedConfig,
    settings: Any,
    pooler: nn.Module,
    linear: nn.Module,
    activation: nn.Module,
    norm: nn.Module | None,
) -> PooledHead:
    dropout = getattr(settings, layout_of(config.backbone).dropout, None)
    if dropout is None:
        dropout = settings.hidden_dropout_prob
    means = "mean" in (config.pooling, config.backbone.get("classifier_pooling"))
    return PooledHead(pooler, linear, dropout, activation, norm, means=means)


def _activation(layout: Layout, classifier: Any) -> nn.Module:
    """A new activation after the pooler, with a copy of the norm that follows it."""
    from transformers.activations import ACT2FN

    activation: nn.Module = layout.activation()
    if layout.activation_setting:
        activation = ACT2FN[getattr(classifier.config, layout.activation_setting)]
    if layout.pooled_norm is None:
        return activation
    return nn.Sequential(activation, copy.deepcopy(classifier.get_submodule(layout.pooled_norm)))


def _family(task: Task) -> Family:
    return Family(
        task,
        AttachedConfig,
        attached_encoder,
        classes="num_labels",
        exits="exits_after_layer",
    )


FAMILIES = {"attached-text": _family("text"), "attached-image": _family("image")}
