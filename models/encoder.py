"""BERT with exits between its layers (Devlin et al. 2019)."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.multi_exit import MultiExitModel, State

PAD_ID = 0


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of the encoder, under the names of transformers, and where its exits stand.

    Attributes:
        vocab_size: Token ids.
        hidden_size: D.
        num_hidden_layers: Layers in all.
        num_attention_heads: Attention heads; they share D evenly.
        intermediate_size: Width of a layer's feed-forward part.
        max_position_embeddings: The most tokens of a text.
        num_labels: C.
        exits_after_layer: Layers, counted from 1, after which an exit stands; the last one ends the
            list.
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
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}; it must be a number above 0")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} cannot be shared by {self.num_attention_heads} "
                f"attention heads"
            )
        exits = self.exits_after_layer
        is_list = isinstance(exits, Sequence) and all(isinstance(exit, int) for exit in exits)
        bounds = [0, *exits] if is_list else []
        rising = all(a < b for a, b in itertools.pairwise(bounds))
        if not rising or bounds[-1:] != [self.num_hidden_layers]:
            raise ValueError(
                f"exits_after_layer is {exits!r}; it must rise from 1 or more and end with the "
                f"last layer, {self.num_hidden_layers}"
            )


class Embed(nn.Module):
    """Tokens to the state that layers pass on."""

    def __init__(self, embeddings: nn.Module) -> None:
        super().__init__()
        self.embeddings = embeddings

    def forward(self, x: State) -> tuple[Tensor, Tensor]:
        """Ids (N, L), or those and a mask (N, L), to hidden states (N, L, D) and (N, 1, 1, L)."""
        ids, mask = x if isinstance(x, tuple) else (x, x != PAD_ID)
        hidden = self.embeddings(ids)
        # Added to the attention logits; finite, so that a row of padding alone has no NaN.
        barrier = hidden.new_zeros(mask.shape).masked_fill(mask == 0, torch.finfo(hidden.dtype).min)
        return hidden, barrier[:, None, None]


class Layers(nn.Module):
    """The encoder layers between two exits, by their place in the whole encoder."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(layers)

    def forward(self, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """(N, L, D) and (N, 1, 1, L) to the same; the second stays as it is."""
        hidden, barrier = state
        for layer in self.layers.values():
            hidden = layer(hidden, barrier)
        return hidden, barrier


class PooledHead(nn.Module):
    """Classifies from the first token, which is never padding."""

    def __init__(self, hidden_size: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.pooler = nn.Linear(hidden_size, hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(hidden_size, num_classes)

    def forward(self, state: tuple[Tensor, Tensor]) -> Tensor:
        """State to logits (N, C)."""
        pooled = self.pooler(state[0][:, 0]).tanh()
        logits: Tensor = self.linear(self.dropout(pooled))
        return logits


def bert_encoder(config: EncoderConfig) -> MultiExitModel:
    """Build a BERT with a pooler and a classifier at each exit.

    Its input is token ids (N, L), in which id 0 is padding, or a tuple of those and an attention
    mask (N, L), 0 where a token is padding. Padding changes no answer. Its state is a tuple of
    hidden states (N, L, D) and what is added to attention logits (N, 1, 1, L).

    Args:
        config: Its sizes and exits.

    Returns:
        The model, randomly initialised, with K = len(exits_after_layer).
    """
    from transformers import BertConfig, BertModel  # seconds that other architectures need not wait

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
    stages: list[nn.Module] = [
        Layers({str(i): bert.encoder.layer[i] for i in range(first, last)})
        for first, last in itertools.pairwise([0, *config.exits_after_layer])
    ]
    stages[0] = nn.Sequential(Embed(bert.embeddings), stages[0])
    heads = [
        PooledHead(config.hidden_size, config.num_labels, bert.config.hidden_dropout_prob)
        for _ in stages
    ]
    return MultiExitModel(stages, heads)
