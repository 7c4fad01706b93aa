"""Encoders of transformers taken apart: embeddings, layers and what all layers share.

A layer here maps hidden states (N, L, D) and the terms of its stage to hidden states. The terms are
computed once per stage from hidden states and mask (N, L). For most encoders they are the barrier
that hides padding; the classes below are for those whose layers take more.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Rotation = tuple[Tensor, Tensor]


class Parts(NamedTuple):
    """The parts of an encoder.

    Attributes:
        embed: Maps ids (N, L) or pixels to hidden states.
        layers: All layers, in order; those that share weights are the same object.
        terms: What the layers of a stage share; None: the barrier.
        embeds_mask: Whether the embeddings take the mask too, as `mask`.
    """

    embed: nn.Module
    layers: list[nn.Module]
    terms: nn.Module | None = None
    embeds_mask: bool = False


class Barrier(nn.Module):
    """The term that hides padding from attention."""

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Map hidden states and mask (N, L) to what is added to attention logits, (N, 1, 1, L)."""
        # Finite, so that a row of only padding gives no NaN.
        barrier = hidden.new_zeros(mask.shape).masked_fill(mask == 0, torch.finfo(hidden.dtype).min)
        return barrier[:, None, None]


class Projected(nn.Sequential):
    """Embeddings and their projection to the width of the layers."""

    def forward(self, input: Tensor, **more: Tensor) -> Tensor:
        """Embed ids (N, L), and more that the embeddings take by name."""
        hidden: Tensor = self[1](self[0](input, **more))
        return hidden


def distances(hidden: Tensor) -> Tensor:
    """Return i - j for the places i and j of two tokens, (L, L), for hidden states (N, L, D)."""
    places = torch.arange(hidden.shape[1], device=hidden.device)
    return places[:, None] - places


def plain_parts(encoder: Any, layers: str) -> Parts:
    """Take apart an encoder whose layers need only the barrier.

    Args:
        encoder: A model of transformers without a head.
        layers: Name of its list of layers.
    """
    embed: nn.Module = encoder.embeddings
    if hasattr(encoder, "embeddings_project"):  # an ELECTRA with embeddings narrower than D
        embed = Projected(embed, encoder.embeddings_project)
    return Parts(embed, list(encoder.get_submodule(layers)))


def albert_parts(encoder: Any, layers: str) -> Parts:
    """Take apart an ALBERT, whose layers share their weights in groups."""
    sizes, groups = encoder.config, encoder.get_submodule(layers)
    per_group = sizes.num_hidden_layers / sizes.num_hidden_groups
    embed = Projected(encoder.embeddings, encoder.encoder.embedding_hidden_mapping_in)
    return Parts(embed, [groups[int(i / per_group)] for i in range(sizes.num_hidden_layers)])


class MPNetTerms(nn.Module):
    """Barrier and bias by distance of an MPNet.

    Args:
        encoder: The stack of layers of transformers.
        max_tokens: Most tokens of a text.
    """

    def __init__(self, encoder: Any, max_tokens: int) -> None:
        super().__init__()
        self.barrier = Barrier()
        self.bias = encoder.relative_attention_bias
        self.nearest = 1 - max_tokens
        # A table: the logarithm in another runtime could round to another bucket.
        buckets = encoder.relative_position_bucket(-torch.arange(self.nearest, max_tokens))
        self.buckets = nn.Buffer(buckets, persistent=False)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Map hidden states and mask to what is added to attention logits, (N, H, L, L)."""
        bias: Tensor = self.bias(self.buckets[distances(hidden) - self.nearest])  # (L, L, H)
        barrier: Tensor = self.barrier(hidden, mask)
        return bias.permute(2, 0, 1) + barrier


class MPNetLayer(nn.Module):
    """A layer of an MPNet, which returns a tuple."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden: Tensor, terms: Tensor) -> Tensor:
        """Map hidden states to hidden states."""
        after: Tensor = self.layer(hidden, terms)[0]
        return after


def mpnet_parts(encoder: Any, layers: str) -> Parts:
    """Take apart an MPNet, whose attention has a bias by distance."""
    places = encoder.config.max_position_embeddings
    terms = MPNetTerms(encoder.encoder, places)
    wrapped: list[nn.Module] = [MPNetLayer(layer) for layer in encoder.get_submodule(layers)]
    return Parts(encoder.embeddings, wrapped, terms)


class DebertaShared(NamedTuple):
    """Terms of the layers of a DeBERTa.

    Attributes:
        mask: (N, L), 0 where a token is padding.
        pairs: (N, 1, L, L), 0 where one of two tokens is padding.
        places: Distances by their place in `embeddings`, (1, L, L); None: attention reads none.
        embeddings: Embeddings of distances, (P, D), or None.
    """

    mask: Tensor
    pairs: Tensor
    places: Tensor | None
    embeddings: Tensor | None


class DebertaTerms(nn.Module):
    """Mask and embedded distances of a DeBERTa.

    Args:
        encoder: The stack of layers of transformers.
        max_tokens: Most tokens of a text.
    """

    def __init__(self, encoder: Any, max_tokens: int) -> None:
        super().__init__()
        from transformers.models.deberta_v2 import modeling_deberta_v2 as deberta

        self.relative = encoder.relative_attention
        if not self.relative:
            return
        self.rel_embeddings = encoder.rel_embeddings
        is_normed = "layer_norm" in encoder.norm_rel_ebd
        self.norm = encoder.LayerNorm if is_normed else nn.Identity()
        self.nearest = 1 - max_tokens
        table = torch.arange(self.nearest, max_tokens)
        buckets, most = encoder.position_buckets, encoder.max_relative_positions
        if buckets > 0 and most > 0:
            # A table: the logarithm in another runtime could round to another bucket.
            table = deberta.make_log_bucket_position(table, buckets, most).to(torch.int64)
        self.table = nn.Buffer(table, persistent=False)

    def forward(self, hidden: Tensor, mask: Tensor) -> DebertaShared:
        """Compute the terms of hidden states (N, L, D) and mask (N, L)."""
        pairs = mask[:, None, None, :] * mask[:, None, :, None]
        if not self.relative:
            return DebertaShared(mask, pairs, None, None)
        places = self.table[distances(hidden) - self.nearest]
        return DebertaShared(mask, pairs, places[None], self.norm(self.rel_embeddings.weight))


class DebertaLayer(nn.Module):
    """A layer of a DeBERTa, with the convolution beside it if it has one."""

    def __init__(self, layer: nn.Module, conv: nn.Module | None) -> None:
        super().__init__()
        self.layer = layer
        self.conv = conv

    def forward(self, hidden: Tensor, terms: DebertaShared) -> Tensor:
        """Map hidden states to hidden states."""
        after: Tensor = self.layer(
            hidden, terms.pairs, relative_pos=terms.places, rel_embeddings=terms.embeddings
        )[0]
        if self.conv is None:
            return after
        joined: Tensor = self.conv(hidden, after, terms.mask)
        return joined


def deberta_parts(encoder: Any, layers: str) -> Parts:
    """Take apart a DeBERTa (v2, v3), whose attention reads embedded distances."""
    stack = encoder.encoder
    wrapped: list[nn.Module] = [
        DebertaLayer(layer, None if i else stack.conv)
        for i, layer in enumerate(encoder.get_submodule(layers))
    ]
    terms = DebertaTerms(stack, encoder.config.max_position_embeddings)
    return Parts(encoder.embeddings, wrapped, terms, embeds_mask=True)


class ModernTerms(nn.Module):
    """Masks and rotations of a ModernBERT, by the kind of attention of a layer.

    Args:
        rotary: Computes the rotations.
        window: Farthest token that a layer of sliding attention reads.
    """

    def __init__(self, rotary: nn.Module, window: int) -> None:
        super().__init__()
        self.rotary = rotary
        self.window = window

    def forward(self, hidden: Tensor, mask: Tensor) -> dict[str, tuple[Tensor, Rotation]]:
        """Compute the terms of hidden states (N, L, D) and mask (N, L)."""
        least = torch.finfo(hidden.dtype).min
        is_hidden = (mask == 0)[:, None, None]  # (N, 1, 1, L)
        is_far = distances(hidden).abs() > self.window
        places = torch.arange(hidden.shape[1], device=hidden.device)[None]
        masks = {"full_attention": is_hidden, "sliding_attention": is_hidden | is_far}
        return {
            kind: (
                hidden.new_zeros(where.shape).masked_fill(where, least),
                self.rotary(hidden, places, kind),
            )
            for kind, where in masks.items()
        }


class ModernLayer(nn.Module):
    """A layer of a ModernBERT."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer
        self.kind: str = layer.attention_type

    def forward(self, hidden: Tensor, terms: dict[str, tuple[Tensor, Rotation]]) -> Tensor:
        """Map hidden states to hidden states."""
        mask, rotation = terms[self.kind]
        after: Tensor = self.layer(hidden, attention_mask=mask, position_embeddings=rotation)
        return after


def modernbert_parts(encoder: Any, layers: str) -> Parts:
    """Take apart a ModernBERT, whose layers read a window or all, with rotated positions."""
    wrapped: list[nn.Module] = [ModernLayer(layer) for layer in encoder.get_submodule(layers)]
    terms = ModernTerms(encoder.rotary_emb, encoder.config.sliding_window)
    return Parts(encoder.embeddings, wrapped, terms)
