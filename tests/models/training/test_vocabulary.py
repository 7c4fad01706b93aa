import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.implementations import BertWordPieceTokenizer

from models.export.onnx_graphs import as_tensors
from models.networks.encoder import EncoderConfig, bert_encoder
from models.networks.multi_exit import MultiExitModel
from models.preprocess import TextPreprocessor
from models.training.vocabulary import prune_vocabulary

TEXTS = ["good film", "not good film, ungood!", "a very long text of good film " * 20]
LETTERS = set("abcdefghijklmnopqrstuvwxyz")


def encoder(vocab_size: int) -> MultiExitModel:
    torch.manual_seed(0)
    model = bert_encoder(
        EncoderConfig(
            vocab_size=vocab_size,
            hidden_size=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=8,
            max_position_embeddings=24,
            num_labels=3,
            exits_after_layer=(1, 2),
        )
    ).eval()
    with torch.no_grad():
        for value in model.parameters():
            value += 0.3 * torch.randn_like(value)
    return model


def size_of(tokenizer: Path) -> int:
    return len(json.loads(tokenizer.read_text())["model"]["vocab"])


def write(described: dict[str, Any], folder: Path) -> Path:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(described))
    return path


def pruned(tokenizer: Path, folder: Path) -> tuple[MultiExitModel, Path]:
    """Prune a network to the tokens that `TEXTS` use; return it and its tokenizer."""
    model, path = encoder(size_of(tokenizer)), folder / "pruned.json"
    path.write_text(prune_vocabulary(model, tokenizer, TEXTS))
    return model, path


def uncut(tokenizer: Path) -> Tokenizer:
    reader = Tokenizer.from_file(str(tokenizer))
    reader.no_truncation()
    reader.no_padding()
    return reader


def test_only_tokens_in_use_special_ones_and_single_characters_stay(
    tokenizer: Path, tmp_path: Path
) -> None:
    _, path = pruned(tokenizer, tmp_path)
    kept = json.loads(path.read_text())["model"]["vocab"]
    special = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    assert kept.keys() == special | LETTERS | {f"##{letter}" for letter in LETTERS} | {
        "good",
        "film",
        "not",
        "very",
        "un",
    }
    assert sorted(kept.values()) == list(range(len(kept)))


def test_the_texts_have_the_same_pieces(tokenizer: Path, tmp_path: Path) -> None:
    _, path = pruned(tokenizer, tmp_path)
    before, after = uncut(tokenizer), uncut(path)
    for text in TEXTS:
        assert before.encode(text).tokens == after.encode(text).tokens
    assert "good" in before.encode(TEXTS[0]).tokens
    assert len(before.encode(TEXTS[2]).tokens) > 200  # tokens far behind the cut are kept too


def test_logits_on_the_texts_stay_as_they_were(tokenizer: Path, tmp_path: Path) -> None:
    whole = encoder(size_of(tokenizer))
    model, path = pruned(tokenizer, tmp_path)
    before = TextPreprocessor(tokenizer, 24, 0, 8, 8).batch(TEXTS)
    after = TextPreprocessor(path, 24, 0, 8, 8).batch(TEXTS)
    assert not np.array_equal(before[0], after[0])
    assert np.array_equal(before[1], after[1])
    with torch.inference_mode():
        logits, expected = model(as_tensors(after)), whole(as_tensors(before))
    assert expected.std(1).min() > 1e-3
    assert torch.equal(logits, expected)


def test_the_embeddings_are_those_of_the_tokens_kept(tokenizer: Path, tmp_path: Path) -> None:
    whole = encoder(size_of(tokenizer)).stages[0][0].embeddings.word_embeddings
    model, path = pruned(tokenizer, tmp_path)
    embeddings = model.stages[0][0].embeddings.word_embeddings
    before, after = (json.loads(p.read_text())["model"]["vocab"] for p in (tokenizer, path))
    assert embeddings.num_embeddings == len(embeddings.weight) == len(after) < len(before)
    assert embeddings.weight.requires_grad
    for token, id in after.items():
        assert torch.equal(embeddings.weight[id], whole.weight[before[token]]), token


def test_unseen_words_are_still_spelt_and_unknown_letters_unknown(
    tokenizer: Path, tmp_path: Path
) -> None:
    _, path = pruned(tokenizer, tmp_path)
    before, after = uncut(tokenizer), uncut(path)
    assert before.encode("bad").tokens == ["[CLS]", "bad", "[SEP]"]
    assert after.encode("bad").tokens == ["[CLS]", "b", "##a", "##d", "[SEP]"]
    assert after.encode("goodish").tokens == ["[CLS]", "good", "##i", "##s", "##h", "[SEP]"]
    assert after.encode("ж good").tokens == ["[CLS]", "[UNK]", "good", "[SEP]"]


def test_special_ids_are_those_of_their_tokens(tokenizer: Path, tmp_path: Path) -> None:
    _, path = pruned(tokenizer, tmp_path)
    described = json.loads(path.read_text())
    vocabulary = described["model"]["vocab"]
    assert {a["content"]: a["id"] for a in described["added_tokens"]} == {
        token: id for token, id in vocabulary.items() if token.startswith("[")
    }
    around = described["post_processor"]["special_tokens"]
    for token in ("[CLS]", "[SEP]"):
        assert around[token]["ids"] == [vocabulary[token]]
    assert described["padding"]["pad_id"] == vocabulary["[PAD]"]
    reader = Tokenizer.from_file(str(path))
    assert reader.encode("good").ids == [vocabulary[t] for t in ("[CLS]", "good", "[SEP]", "[PAD]")]


def shuffled(described: dict[str, Any]) -> dict[str, Any]:
    """Move the special tokens of the tokenizer to the end."""
    moved = copy.deepcopy(described)
    vocabulary = moved["model"]["vocab"]
    size = len(vocabulary)
    moved["model"]["vocab"] = {token: size - 1 - id for token, id in vocabulary.items()}
    for added in moved["added_tokens"]:
        added["id"] = size - 1 - added["id"]
    for special in moved["post_processor"]["special_tokens"].values():
        special["ids"] = [size - 1 - id for id in special["ids"]]
    moved["padding"]["pad_id"] = size - 1
    return moved


def test_special_tokens_may_stand_anywhere(word_pieces: dict[str, Any], tmp_path: Path) -> None:
    path = write(shuffled(word_pieces), tmp_path)
    whole = encoder(size_of(path))
    model, after = pruned(path, tmp_path)
    ids = uncut(after).encode(TEXTS[1]).ids
    assert ids[0] == json.loads(after.read_text())["model"]["vocab"]["[CLS]"]
    with torch.inference_mode():
        logits = model(as_tensors(TextPreprocessor(after, 24, 0, 8, 8).batch(TEXTS)))
        expected = whole(as_tensors(TextPreprocessor(path, 24, 0, 8, 8).batch(TEXTS)))
    assert torch.equal(logits, expected)


def test_what_the_tokenizers_library_makes_of_a_vocabulary_can_be_pruned(
    word_pieces: dict[str, Any], tmp_path: Path
) -> None:
    vocabulary = shuffled(word_pieces)["model"]["vocab"]
    built = BertWordPieceTokenizer(vocabulary)
    built.save(str(tmp_path / "built.json"))
    described = json.loads((tmp_path / "built.json").read_text())
    assert described["post_processor"]["type"] == "BertProcessing"
    _, path = pruned(tmp_path / "built.json", tmp_path)
    encoding = uncut(path).encode("good film")
    assert encoding.tokens == ["[CLS]", "good", "film", "[SEP]"]
    kept = json.loads(path.read_text())["model"]["vocab"]
    assert encoding.ids == [kept[token] for token in encoding.tokens]


def test_the_unknown_token_stays_even_if_nothing_marks_it_as_special(
    word_pieces: dict[str, Any], tmp_path: Path
) -> None:
    path = write({**word_pieces, "added_tokens": []}, tmp_path)
    _, after = pruned(path, tmp_path)
    assert uncut(after).encode("ж good").tokens == ["[CLS]", "[UNK]", "good", "[SEP]"]


@pytest.mark.parametrize("part", ["padding", "truncation", "post_processor"])
def test_parts_that_a_tokenizer_lacks_are_not_missed(
    word_pieces: dict[str, Any], tmp_path: Path, part: str
) -> None:
    path = write({**word_pieces, part: None}, tmp_path)
    _, after = pruned(path, tmp_path)
    for text in TEXTS:
        assert uncut(after).encode(text).tokens == uncut(path).encode(text).tokens


@pytest.mark.parametrize("kind", ["BPE", "Unigram", "WordLevel"])
def test_only_word_pieces_can_be_pruned(
    word_pieces: dict[str, Any], tmp_path: Path, kind: str
) -> None:
    path = write({**word_pieces, "model": {"type": kind, "vocab": {}}}, tmp_path)
    model = encoder(20)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=rf"{path} is a {kind} tokenizer; only the vocabulary of"):
        prune_vocabulary(model, path, TEXTS)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("tokens", [-1, 1])
def test_embeddings_of_another_size_are_refused(tokenizer: Path, tokens: int) -> None:
    size = size_of(tokenizer)
    with pytest.raises(ValueError, match=rf"no word embeddings of {size} tokens, the tokenizer's"):
        prune_vocabulary(encoder(size + tokens), tokenizer, TEXTS)


def test_a_network_without_words_is_refused(tokenizer: Path, network: MultiExitModel) -> None:
    with pytest.raises(ValueError, match="the network has no word embeddings of"):
        prune_vocabulary(network, tokenizer, TEXTS)
