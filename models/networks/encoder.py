"""BERT with exits between its layers (Devlin et al. 2019), and parts shared by all encoders."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.networks.encoder_parts import Barrier
from models.networks.family import Family, check_count
from models.networks.multi_exit import MultiExitModel, State

PAD_ID = 0
BERT_BASE = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "exits_after_layer": (3, 6, 9, 12),
}


@dataclass(frozen=True)
class EncoderConfig:
    """The sizes of the encoder, under the names of transformers, and the places of its exits.

    Attributes:
        vocab_size: Number of token ids.
        hidden_size: D.
        num_hidden_layers: Number of layers.
        num_attention_heads: Attention heads; they share D evenly.
        intermediate_size: Width of a layer's feed-forward part.
        max_position_embeddings: Most tokens of a text.
        num_labels: C.
        exits_after_layer: Layers, counted from 1, that an exit follows; the last entry is the last
            layer.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    num_labels: int
    exits_after_layer: Sequence[int]

    def __post_init__(self) -> None:
        sizes = {name: value for name, value in vars(self).items() if name != "exits_after_layer"}
        for name, value in sizes.items():
            check_count(name, value)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} cannot be shared by {self.num_attention_heads} "
                f"attention heads"
            )
        check_exits(self.exits_after_layer, self.num_hidden_layers)


def check_exits(exits_after_layer: object, num_layers: int) -> None:
    """Check that exits rise and that the last one follows the last layer.

    Raises:
        ValueError: If they do not; the message names them.
    """
    exits = exits_after_layer if isinstance(exits_after_layer, Sequence) else []
    bounds = [0, *exits] if all(isinstance(exit, int) for exit in exits) else []
    rising = all(a < b for a, b in itertools.pairwise(bounds))
    if not rising or bounds[-1:] != [num_layers]:
        raise ValueError(
            f"exits_after_layer is {exits_after_layer!r}; it must rise from 1 or more and end with "
            f"the last layer, {num_layers}"
        )


class Embed(nn.Module):
    """Map tokens to the state that text stages pass on.

    Args:
        embeddings: Maps ids (N, L) to hidden states (N, L, D); for pairs of texts also their
            segments, as `token_type_ids` (N, L).
        pad_id: The id that counts as padding if no mask is given.
        separator_id: The id after the first text of a pair, which the second text follows as
            segment 1; None: the embeddings know no segments.
        takes_mask: Whether the embeddings take the mask too, as `mask`.
    """

    def __init__(
        self,
        embeddings: nn.Module,
        pad_id: int,
        separator_id: int | None = None,
        *,
        takes_mask: bool = False,
    ) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.pad_id = pad_id
        self.separator_id = separator_id
        self.takes_mask = takes_mask

    def forward(self, x: State) -> tuple[Tensor, Tensor]:
        """Map ids (N, L), or ids and a mask (N, L), to hidden states and the mask in int64."""
        ids, mask = x if isinstance(x, tuple) else (x, x != self.pad_id)
        mask = mask.to(torch.int64)
        more = {"mask": mask} if self.takes_mask else {}
        if self.separator_id is not None:
            ends = (ids == self.separator_id).to(torch.int64)
            more["token_type_ids"] = ((ends.cumsum(1) - ends) > 0).to(torch.int64) * mask
        return self.embeddings(ids, **more), mask


class Layers(nn.Module):
    """The encoder layers between two exits, keyed by their place in the whole encoder.

    The state of texts is hidden states (N, L, D) and a mask (N, L) int64, 0 where a token is
    padding. The state of images, which have no padding, is the hidden states alone.

    Args:
        layers: The layers; each maps hidden states and terms to hidden states.
        first: Place of the first of them.
        terms: Maps hidden states and mask to the terms; if not given, to what is added to
            attention logits to hide padding. Images have None in place of terms.
    """

    def __init__(
        self, layers: Sequence[nn.Module], first: int, terms: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.terms = terms or Barrier()
        self.layers = nn.ModuleDict({str(i): layer for i, layer in enumerate(layers, first)})

    def forward(self, state: State) -> State:
        """Map state to state; the mask does not change."""
        if isinstance(state, Tensor):
            return self._through(state, None)
        hidden, mask = state
        # Copy the mask: the exporter mishandles an output that is also an input.
        return self._through(hidden, self.terms(hidden, mask)), mask.clone()

    def _through(self, hidden: Tensor, terms: Any) -> Tensor:
        for layer in self.layers.values():
            hidden = layer(hidden, terms)
        return hidden


class PooledHead(nn.Module):
    """Classify from the first token, which is never padding, or from the mean of all tokens.

    Args:
        pooler: Maps the first hidden state (N, D) to the input of `linear`.
        linear: Maps the pooled values to logits.
        dropout: Share of the pooled values that training drops.
        activation: Activation of the pooled values; tanh if not given.
        norm: Normalises the hidden state first, for layers that do not.
        means: Whether to pool the mean of the tokens in place of the first.
    """

    def __init__(
        self,
        pooler: nn.Module,
        linear: nn.Module,
        dropout: float,
        activation: nn.Module | None = None,
        norm: nn.Module | None = None,
        *,
        means: bool = False,
    ) -> None:
        super().__init__()
        self.norm = norm or nn.Identity()
        self.pooler = pooler
        self.activation = activation or nn.Tanh()
        self.dropout = nn.Dropout(dropout)
        self.linear = linear
        self.means = means

    def forward(self, state: State) -> Tensor:
        """Map a state to logits (N, C)."""
        hidden = state if isinstance(state, Tensor) else state[0]  # (N, L, D)
        if self.means and not isinstance(state, Tensor):
            counted = state[1][:, :, None].to(hidden.dtype)  # (N, L, 1)
            read = (self.norm(hidden) * counted).sum(1) / counted.sum(1).clamp(min=1)
        else:
            read = self.norm(hidden[:, 0])
        pooled = self.activation(self.pooler(read))
        logits: Tensor = self.linear(self.dropout(pooled))
        return logits


def encoder_stages(
    embed: nn.Module,
    layers: Sequence[nn.Module],
    exits_after_layer: Sequence[int],
    terms: nn.Module | None = None,
) -> list[nn.Module]:
    """Cut an encoder into stages, one ending at each exit.

    Args:
        embed: Maps the input to the first state; becomes the start of the first stage.
        layers: All layers, as `Layers` takes them.
        exits_after_layer: As in `EncoderConfig`.
        terms: As for `Layers`.
    """
    stages: list[nn.Module] = [
        Layers(layers[first:last], first, terms)
        for first, last in itertools.pairwise([0, *exits_after_layer])
    ]
    return [nn.Sequential(embed, stages[0]), *stages[1:]]


def bert_encoder(config: EncoderConfig) -> MultiExitModel:
    """Build a BERT with a pooler and a classifier at each exit.

    The input is token ids (N, L) int64, in which id 0 is padding, or a tuple of ids and an
    attention mask (N, L), 0 where a token is padding. Padding changes no prediction. The state is a
    tuple of hidden states (N, L, D) and the mask (N, L) int64.

    Args:
        config: Sizes and exits.

    Returns:
        The model, randomly initialised, with K = len(exits_after_layer).
    """
    from transformers import BertConfig, BertModel  # takes seconds; other networks do not need it

    bert = BertModel(
        BertConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            intermediate_size=config.intermediate_size,
            max_position_embeddings=config.max_position_embeddings,
            pad_token_id=PAD_ID,
        ),
        add_pooling_layer=False,
    )
    stages = encoder_stages(
        Embed(bert.embeddings, PAD_ID), list(bert.encoder.layer), config.exits_after_layer
    )
    heads = [
        PooledHead(
            nn.Linear(config.hidden_size, config.hidden_size),
            nn.Linear(config.hidden_size, config.num_labels),
            bert.config.hidden_dropout_prob,
        )
        for _ in stages
    ]
    return MultiExitModel(stages, heads)


FAMILIES = {
    "bert_4": Family(
        "text",
        EncoderConfig,
        bert_encoder,
        defaults=BERT_BASE,
        classes="num_labels",
        exits="exits_after_layer",
    )
}
