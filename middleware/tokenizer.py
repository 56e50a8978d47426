"""Text to token ids as the worker would, and back."""

import asyncio
import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import msgspec

from ..errors import ConfigError, EspalierError
from .cut import Decode

if TYPE_CHECKING:
    import tokenizers

INLINE_TEXT_CHARS = 20_000
"""Longer texts are tokenised in a thread: 20,000 characters take about 10 ms, which others would wait."""

INLINE_TOKENS = 20_000
"""More tokens are turned into text in a thread, for the same reason."""

_LOCKED_TOKENS = 1000
"""So many tokens are turned into text under the interpreter's lock: that is quicker, and takes 0.1 ms."""

_SPELLINGS = 4096
"""How many spelled-out stops are remembered: more than a model has."""

ANCHOR = "\n"
"""What a continuation is tokenised and decoded behind, for tokenizers that put a space before the first word
and strip it again."""


class Tokenizer(Protocol):
    """What the middleware needs of a tokenizer."""

    vocabulary_size: int | None
    """Ids from here on do not exist; None where that is not known."""
    prompt_prefix: str
    """The special tokens that `encode_prompt` puts in front, spelled out; "" where there are none."""

    @property
    def decode(self) -> Decode | None:
        """Ids to text, or None where that cannot be done."""
        ...

    def spell(self, ids: tuple[int, ...]) -> str:
        """Return the text of a few ids, special tokens spelled out; "" where that is not known."""
        ...

    async def decode_prompt(self, ids: Sequence[int]) -> str | None:
        """Return the text of a whole prompt, without what `encode_prompt` puts in front, or None."""
        ...

    async def decode_after(self, before: Sequence[int], tokens: Sequence[int]) -> str | None:
        """Return the text that `tokens` add to that of `before`, special tokens spelled out, or None."""
        ...

    async def encode_prompt(self, text: str) -> list[int]:
        """Return the ids of a whole prompt, with the special tokens that the worker would add."""
        ...

    async def encode_continuation(self, text: str) -> list[int]:
        """Return the ids of text that follows other tokens: nothing is added before or behind."""
        ...


class TokenizerFailed(EspalierError):
    """A text could not be tokenised. The call goes on without the tree."""


class LocalTokenizer:
    """A `tokenizer.json`, run in this process."""

    def __init__(self, tokenizer: "tokenizers.Tokenizer", *, model_vocabulary_size: int = 0) -> None:
        """Take the tokenizer, and how many ids the model has: often more than the tokenizer has."""
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        named = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.vocabulary_size: int | None = max(named, model_vocabulary_size)
        self.decode: Decode | None = self._decode_inside
        self._spell = lru_cache(maxsize=_SPELLINGS)(self._decode)
        self._anchor_ids = self._find_anchor()
        self._prefix_ids = self._find_prefix_ids()
        self.prompt_prefix = self._decode(self._prefix_ids) if self._prefix_ids else ""

    @classmethod
    def load(cls, path: Path) -> "LocalTokenizer":
        """Load a `tokenizer.json`, or the one in the folder `path`, with the `config.json` beside it, if any.

        Raises: ConfigError where there is no tokenizer, or one of the two cannot be read.
        """
        import tokenizers  # noqa: PLC0415  base installs have none; only the radix tree needs it

        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise ConfigError(f"tokenizer_path {path}: there is no {file.name}; name a tokenizer.json")
        model_vocabulary_size = _model_vocabulary_size(file.with_name("config.json"))
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(file))
            return cls(tokenizer, model_vocabulary_size=model_vocabulary_size)
        except Exception as error:  # tokenizers raises nothing narrower
            raise ConfigError(f"tokenizer_path {file}: {error}") from error

    async def encode_prompt(self, text: str) -> list[int]:
        """Return the ids of a whole prompt, with the special tokens that the worker would add."""
        return await in_thread_if(len(text) > INLINE_TEXT_CHARS, lambda: self._encode(text, adds=True))

    async def encode_continuation(self, text: str) -> list[int]:
        """Return the ids of text that follows other tokens: nothing is added before or behind."""
        return await in_thread_if(len(text) > INLINE_TEXT_CHARS, lambda: self._encode_after_anchor(text))

    def spell(self, ids: tuple[int, ...]) -> str:
        """Return the text of a few ids, special tokens spelled out."""
        return self._spell(ids)

    async def decode_prompt(self, ids: Sequence[int]) -> str:
        """Return the text of a whole prompt, without what `encode_prompt` puts in front."""
        added = len(self._prefix_ids)
        rest = ids[added:] if list(ids[:added]) == self._prefix_ids else ids
        return await in_thread_if(len(ids) > INLINE_TOKENS, lambda: self._decode(rest))

    async def decode_after(self, before: Sequence[int], tokens: Sequence[int]) -> str:
        """Return the text that `tokens` add to that of `before`, special tokens spelled out."""

        def decode() -> str:
            shown = self._decode(before)
            whole = self._decode([*before, *tokens])
            return whole[len(shown) :] if whole.startswith(shown) else self._decode(tokens)

        return await in_thread_if(len(tokens) > INLINE_TOKENS, decode)

    # Only what tokenizers does to a batch releases the interpreter's lock: without that, a thread would keep
    # the event loop waiting as long as no thread at all.

    def _decode(self, ids: Sequence[int], *, skips_special_tokens: bool = False) -> str:
        listed = ids if isinstance(ids, list) else list(ids)
        if len(listed) > _LOCKED_TOKENS:
            return self._tokenizer.decode_batch([listed], skip_special_tokens=skips_special_tokens)[0]
        return self._tokenizer.decode(listed, skip_special_tokens=skips_special_tokens)

    def _decode_inside(self, ids: Sequence[int], *, skips_special_tokens: bool) -> str:
        """Return the text of `ids` as it stands behind others: some decoders strip a space from the first."""
        anchor = self._anchor_ids
        if anchor is not None:
            text = self._decode([*anchor, *ids], skips_special_tokens=skips_special_tokens)
            if text.startswith(ANCHOR):
                return text.removeprefix(ANCHOR)
        return self._decode(ids, skips_special_tokens=skips_special_tokens)

    def _encode(self, text: str, *, adds: bool) -> list[int]:
        if len(text) > INLINE_TEXT_CHARS:
            return self._tokenizer.encode_batch_fast([text], add_special_tokens=adds)[0].ids
        return self._tokenizer.encode(text, add_special_tokens=adds).ids

    def _encode_after_anchor(self, text: str) -> list[int]:
        anchor = self._anchor_ids
        if anchor is not None:
            ids = self._encode(ANCHOR + text, adds=False)
            if ids[: len(anchor)] == anchor:
                return ids[len(anchor) :]
        return self._encode(text, adds=False)

    def _find_anchor(self) -> list[int] | None:
        """Return the anchor's ids if the tokenizer treats the start of a text as the start of a word."""
        first = self._tokenizer.encode("x", add_special_tokens=False).tokens
        return self._encode(ANCHOR, adds=False) if first and first[0].startswith("\u2581") else None

    def _find_prefix_ids(self) -> list[int]:
        plain, full = self._encode("x", adds=False), self._encode("x", adds=True)
        added = len(full) - len(plain)
        return full[: next((at for at in range(added + 1) if full[at : at + len(plain)] == plain), 0)]


class _TextConfig(msgspec.Struct):
    vocab_size: int | None = None


class _ModelConfig(_TextConfig):
    text_config: _TextConfig | None = None
    """Where a model of several kinds of input keeps what concerns its text."""


def _model_vocabulary_size(file: Path) -> int:
    """Return how many ids a model's `config.json` gives it; 0 where there is no file, or it does not say.

    Raises: ConfigError where the file is not such a configuration.
    """
    if not file.is_file():
        return 0
    try:
        # Not by msgspec, which refuses the Infinity that some configurations hold.
        config = msgspec.convert(json.loads(file.read_bytes()), _ModelConfig)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"tokenizer_path: {file}: {error}") from error
    of_text = config.text_config.vocab_size if config.text_config is not None else None
    return max(config.vocab_size or 0, of_text or 0)


_Result = TypeVar("_Result")


async def in_thread_if(is_long: bool, work: Callable[[], _Result]) -> _Result:  # noqa: FBT001  read as "if"
    """Return what `work` returns; where that takes long, it is done while the event loop goes on."""
    return await asyncio.to_thread(work) if is_long else work()
