"""A smaller vocabulary: what a dataset uses, and single characters for what it does not."""

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

    Special tokens and single characters stay, so that any word can still be spelt. The texts
    themselves are tokenised as before: WordPiece takes the longest piece that there is.

    Args:
        model: Whose word embeddings are cut, in place.
        tokenizer: Path of its `tokenizer.json`.
        texts: Those of the training set.

    Returns:
        The new `tokenizer.json`.

    Raises:
        ValueError: If the tokenizer is none of WordPiece, or the network has no such embeddings.
    """
    described: dict[str, Any] = json.loads(tokenizer.read_text())
    if described["model"]["type"] != "WordPiece":
        raise ValueError(
            f"{tokenizer} is a {described['model']['type']} tokenizer; only the vocabulary of a "
            f"WordPiece tokenizer can be pruned"
        )
    before: dict[str, int] = described["model"]["vocab"]
    reader = Tokenizer.from_file(str(tokenizer))
    reader.no_truncation()
    reader.no_padding()
    kept = {added["id"] for added in described["added_tokens"]}
    padding, around = (described.get(name) or {} for name in ("padding", "post_processor"))
    named = (described["model"]["unk_token"], padding.get("pad_token"))
    kept |= {before[token] for token in named if token in before}
    kept |= {id for token, id in before.items() if len(token.removeprefix("##")) == 1}
    kept |= {id for encoding in reader.encode_batch(list(texts)) for id in encoding.ids}
    old_ids = sorted(kept)
    new_ids = {old: new for new, old in enumerate(old_ids)}
    _cut_embeddings(model, len(before), old_ids)

    described["model"]["vocab"] = {
        token: new_ids[id] for token, id in before.items() if id in new_ids
    }
    for added in described["added_tokens"]:
        added["id"] = new_ids[added["id"]]
    for special in around.get("special_tokens", {}).values():
        special["ids"] = [new_ids[id] for id in special["ids"]]
    for name in around.keys() & {"cls", "sep"}:  # of the kind BertProcessing: a token and its id
        around[name][1] = new_ids[around[name][1]]
    if "pad_id" in padding:
        padding["pad_id"] = new_ids[padding["pad_id"]]
    return json.dumps(described, ensure_ascii=False)


def _cut_embeddings(model: MultiExitModel, size: int, old_ids: list[int]) -> None:
    words = [
        module
        for name, module in model.named_modules()
        if name.endswith("word_embeddings") and isinstance(module, nn.Embedding)
    ]
    if len(words) != 1 or words[0].num_embeddings != size:
        raise ValueError(
            f"the network has no word embeddings of {size} tokens, the tokenizer's vocabulary"
        )
    words[0].weight = nn.Parameter(words[0].weight.detach()[torch.tensor(old_ids)])
    words[0].num_embeddings = len(old_ids)
    words[0].padding_idx = None  # it matters to training alone, and its id may be another now
