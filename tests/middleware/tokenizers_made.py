"""Small tokenizers, made on the spot: byte-level BPE with chat specials, and two with byte fallback."""

import json
from functools import cache
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CORPUS = [
    "the quick brown fox jumps over the lazy dog, hello world, hello there, and so on",
    "user assistant system tool answer question: what is 12 + 30? it is 42.",
    "def main():\n    return [x for x in range(10)]\n",
    "naïve café 你好世界 こんにちは 🙂🙃",
] * 4


@cache
def byte_level() -> tokenizers.Tokenizer:
    """As Qwen's: any text comes back as it was."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


@cache
def byte_fallback() -> tokenizers.Tokenizer:
    """As Llama 2's: a space before the first word, bytes for unknown characters, `<s>` before a prompt."""
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    trained = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    trained.train_from_iterator(["hello world the quick brown fox assistant user"] * 4, trainer)
    # A trainer keeps a token only if it is special; a byte is not, or it would be left out of texts.
    made = json.loads(trained.to_str())
    made["added_tokens"] = [each for each in made["added_tokens"] if not each["content"].startswith("<0x")]
    trained = tokenizers.Tokenizer.from_str(json.dumps(made))
    trained.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return trained


@cache
def with_beginning() -> tokenizers.Tokenizer:
    """As Llama 3's: byte-level, with a template that puts a beginning token before a prompt."""
    made = tokenizers.Tokenizer.from_str(byte_level().to_str())
    made.add_tokens(["<tool_call>", "  "])
    made.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    return made


@cache
def unigram() -> tokenizers.Tokenizer:
    """As SentencePiece's Unigram: likely pieces, bytes for unknown characters, `<s>` before a prompt."""
    words = ["▁hello", "▁world", "▁the", "▁quick", "hel", "lo", "or", "ing", "你好", "é", "\n"]
    pieces = ["▁", *"abcdefghijklmnopqrstuvwxyz0123456789", *words]
    vocabulary = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    vocabulary += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    vocabulary += [(piece, -3.0 - at / len(pieces)) for at, piece in enumerate(pieces)]
    made = tokenizers.Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made


def saved(tokenizer: tokenizers.Tokenizer, folder: Path) -> str:
    """Save as the worker's model folder would hold it; returns the folder."""
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder)
