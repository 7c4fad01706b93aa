"""A tiny encoder as `save_pretrained` leaves it, and reviews that it can learn."""

import random
from pathlib import Path

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PRAISE, BLAME = ("good", "great", "fine"), ("bad", "awful", "dull")
FILLERS = ("the", "film", "was", "very", "and", "a")
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}


def save_encoder(folder: Path, model_type: str = "bert") -> Path:
    """An encoder of two layers that has learnt nothing, and its tokenizer."""
    import torch
    import transformers
    from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import WordPiece

    torch.manual_seed(0)
    words = [*SPECIAL, *PRAISE, *BLAME, *FILLERS, *map(chr, range(ord("b"), ord("z") + 1))]
    tokenizer = Tokenizer(WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **dict(zip(names, SPECIAL, strict=True))
    ).save_pretrained(folder)
    pad_id = 1 if model_type == "mpnet" else 0  # an MPNet counts positions from 1
    config = transformers.AutoConfig.for_model(
        model_type, vocab_size=len(words), pad_token_id=pad_id, **SIZES
    )
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    return folder


def write_reviews(path: Path, rows: int = 120) -> Path:
    """Write texts of 2 to 12 words, which praise or blame; the label is in the last word."""
    chance, lines = random.Random(0), dict[str, str]()
    while len(lines) < rows:
        is_praise = len(lines) % 2
        words = [*chance.choices(FILLERS, k=chance.randint(1, 12))]
        words.append(chance.choice(PRAISE if is_praise else BLAME))
        lines[" ".join(words)] = "praise" if is_praise else "blame"
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in lines.items()))
    return path
