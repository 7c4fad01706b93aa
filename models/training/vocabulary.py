"""Reduce a WordPiece vocabulary to the tokens that a dataset uses and single characters."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from models.networks.multi_exit import MultiExitModel


def prune_vocabulary(model: MultiExitModel, tokenizer: Path, texts: Sequence[str]) -> str:
    """Drop the WordPiece tokens that the texts do not use, from the embeddings too.

    Special tokens and single characters stay, so any word can still be spelt. The texts themselves
    are tokenised as before, because WordPiece takes the longest token that matches.

    Args:
        model: The network; its word embeddings are cut in place.
        tokenizer: Path of its `tokenizer.json`.
        texts: Texts of the training set.

    Returns:
        The content of the new `tokenizer.json`.

    Raises:
        ValueError: If the tokenizer is not a WordPiece tokenizer, or the network has no word
            embeddings for it.
    """
    config: dict[str, Any] = json.loads(tokenizer.read_text())
    if config["model"]["type"] != "WordPiece":
        raise ValueError(
            f"{tokenizer} is a {config['model']['type']} tokenizer; only the vocabulary of a "
            f"WordPiece tokenizer can be pruned"
        )
    vocabulary: dict[str, int] = config["model"]["vocab"]
    old_ids = sorted(_ids_to_keep(config, tokenizer, texts))
    new_ids = {old: new for new, old in enumerate(old_ids)}
    _cut_embeddings(model, len(vocabulary), old_ids)
    config["model"]["vocab"] = {
        token: new_ids[id] for token, id in vocabulary.items() if id in new_ids
    }
    _renumber_special_tokens(config, new_ids)
    return json.dumps(config, ensure_ascii=False)


def _ids_to_keep(config: dict[str, Any], tokenizer: Path, texts: Sequence[str]) -> set[int]:
    """Collect the ids of special tokens, single characters and the tokens of the texts."""
    vocabulary: dict[str, int] = config["model"]["vocab"]
    reader = Tokenizer.from_file(str(tokenizer))
    reader.no_truncation()
    reader.no_padding()
    pad_token = (config.get("padding") or {}).get("pad_token")
    kept = {added["id"] for added in config["added_tokens"]}
    kept |= {
        vocabulary[token]
        for token in (config["model"]["unk_token"], pad_token)
        if token in vocabulary
    }
    kept |= {id for token, id in vocabulary.items() if len(token.removeprefix("##")) == 1}
    kept |= {id for encoding in reader.encode_batch(list(texts)) for id in encoding.ids}
    return kept


def _renumber_special_tokens(config: dict[str, Any], new_ids: dict[int, int]) -> None:
    padding, post_processor = (config.get(name) or {} for name in ("padding", "post_processor"))
    for added in config["added_tokens"]:
        added["id"] = new_ids[added["id"]]
    for special in post_processor.get("special_tokens", {}).values():
        special["ids"] = [new_ids[id] for id in special["ids"]]
    # A post-processor of type BertProcessing holds a token and its id under each name.
    for name in post_processor.keys() & {"cls", "sep"}:
        post_processor[name][1] = new_ids[post_processor[name][1]]
    if "pad_id" in padding:
        padding["pad_id"] = new_ids[padding["pad_id"]]


def _cut_embeddings(model: MultiExitModel, size: int, old_ids: list[int]) -> None:
    words = [
        module
        for name, module in model.named_modules()
        if name.endswith("word_embeddings") and isinstance(module, nn.Embedding)
    ]
    if len(words) != 1 or words[0].num_embeddings != size:
        raise ValueError(
            f"the network has no word embeddings of {size} tokens, the tokenizer's vocabulary; "
            f"give the tokenizer that the network was trained with"
        )
    words[0].weight = nn.Parameter(words[0].weight.detach()[torch.tensor(old_ids)])
    words[0].num_embeddings = len(old_ids)
    words[0].padding_idx = None  # matters only in training, and the padding id may have changed
