"""Text to token ids as the worker would, and back.

The tokenizer is looked for where `--middleware-arg radix_tree.tokenizer_path` says, else where the worker's
`GET /model_info` says its own lies, else the worker is asked to tokenise each text (`POST /tokenize`).
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import msgspec

from ..calls import Call, Handler
from ..errors import ConfigError, EspalierError
from .matching import Decode

if TYPE_CHECKING:
    import tokenizers

log = logging.getLogger(__name__)

INLINE_TEXT_CHARS = 20_000
"""Longer texts are tokenised in a thread: 20,000 characters take about 10 ms, which others would wait."""

INLINE_TOKENS = 20_000
"""More tokens are turned into text in a thread, for the same reason."""

RETRY_INTERVAL_S = 1.0
"""How long a tokenizer that could not be found is not looked for again: two small calls a second at most."""

_SPELLINGS = 4096
"""How many spelled-out stops are remembered: more than a model has."""

_ANCHOR = "\n"
"""What a continuation is tokenised behind, for tokenizers that put a space before the first word."""


class Tokenizer(Protocol):
    """What the middleware needs of a tokenizer."""

    vocabulary_size: int | None
    """Ids from here on do not exist; None where that is not known."""
    decode: Decode | None
    """Ids to text, or None where only the worker could do it."""
    prompt_prefix: str
    """The special tokens that `encode_prompt` puts in front, spelled out; "" where there are none."""

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

    def __init__(self, tokenizer: "tokenizers.Tokenizer") -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.vocabulary_size: int | None = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.decode: Decode | None = self._decode
        self._spell = lru_cache(maxsize=_SPELLINGS)(self._decode)
        self._anchor_ids = self._find_anchor()
        self._prefix_ids = self._find_prefix_ids()
        self.prompt_prefix = self._decode(self._prefix_ids) if self._prefix_ids else ""

    @classmethod
    def load(cls, path: Path) -> "LocalTokenizer":
        """Load a `tokenizer.json`, or the one in the folder `path`.

        Raises: ConfigError where there is none, or it is not one.
        """
        import tokenizers  # noqa: PLC0415  base installs have none; only the radix tree needs it

        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise ConfigError(f"tokenizer_path {path}: there is no {file.name}; name a tokenizer.json")
        try:
            return cls(tokenizers.Tokenizer.from_file(str(file)))
        except Exception as error:  # tokenizers raises nothing narrower
            raise ConfigError(f"tokenizer_path {file}: {error}") from error

    async def encode_prompt(self, text: str) -> list[int]:
        """Return the ids of a whole prompt, with the special tokens that the worker would add."""
        return await _in_thread_if(len(text) > INLINE_TEXT_CHARS, lambda: self._encode(text, adds=True))

    async def encode_continuation(self, text: str) -> list[int]:
        """Return the ids of text that follows other tokens: nothing is added before or behind."""
        return await _in_thread_if(len(text) > INLINE_TEXT_CHARS, lambda: self._encode_after_anchor(text))

    def spell(self, ids: tuple[int, ...]) -> str:
        """Return the text of a few ids, special tokens spelled out."""
        return self._spell(ids)

    async def decode_prompt(self, ids: Sequence[int]) -> str:
        """Return the text of a whole prompt, without what `encode_prompt` puts in front."""
        added = len(self._prefix_ids)
        rest = ids[added:] if list(ids[:added]) == self._prefix_ids else ids
        return await _in_thread_if(len(ids) > INLINE_TOKENS, lambda: self._decode(rest))

    async def decode_after(self, before: Sequence[int], tokens: Sequence[int]) -> str:
        """Return the text that `tokens` add to that of `before`, special tokens spelled out."""

        def decode() -> str:
            shown = self._decode(before)
            whole = self._decode([*before, *tokens])
            return whole[len(shown) :] if whole.startswith(shown) else self._decode(tokens)

        return await _in_thread_if(len(tokens) > INLINE_TOKENS, decode)

    def _decode(self, ids: Sequence[int], *, skips_special_tokens: bool = False) -> str:
        return self._tokenizer.decode(
            ids if isinstance(ids, list) else list(ids), skip_special_tokens=skips_special_tokens
        )

    def _encode(self, text: str, *, adds: bool) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=adds).ids

    def _encode_after_anchor(self, text: str) -> list[int]:
        anchor = self._anchor_ids
        if anchor is not None:
            ids = self._encode(_ANCHOR + text, adds=False)
            if ids[: len(anchor)] == anchor:
                return ids[len(anchor) :]
        return self._encode(text, adds=False)

    def _find_anchor(self) -> list[int] | None:
        """Return the anchor's ids if the tokenizer treats the start of a text as the start of a word."""
        first = self._tokenizer.encode("x", add_special_tokens=False).tokens
        return self._encode(_ANCHOR, adds=False) if first and first[0].startswith("\u2581") else None

    def _find_prefix_ids(self) -> list[int]:
        plain, full = self._encode("x", adds=False), self._encode("x", adds=True)
        added = len(full) - len(plain)
        return full[: next((at for at in range(added + 1) if full[at : at + len(plain)] == plain), 0)]


class _TokenizeReply(msgspec.Struct):
    tokens: list[int]


class _ModelInfo(msgspec.Struct):
    tokenizer_path: str | None = None


_decode_tokenize_reply = msgspec.json.Decoder(_TokenizeReply).decode
_decode_model_info = msgspec.json.Decoder(_ModelInfo).decode

_MAX_CONTROL_REPLY_BYTES = 64 << 20
"""A longer answer to `/tokenize` or `/model_info` is not read."""


class WorkerTokenizer:
    """The worker's own tokenizer, asked over HTTP. Whole generations are reused; ids are not decoded."""

    vocabulary_size: int | None = None
    decode: Decode | None = None
    prompt_prefix = ""

    def __init__(self, forward: Handler) -> None:
        self._forward = forward

    def spell(self, ids: tuple[int, ...]) -> str:  # noqa: ARG002  the protocol's
        """Return "": the worker is not asked."""
        return ""

    async def decode_prompt(self, ids: Sequence[int]) -> str | None:  # noqa: ARG002
        """Return None: the worker is not asked."""
        return None

    async def decode_after(self, before: Sequence[int], tokens: Sequence[int]) -> str | None:  # noqa: ARG002
        """Return None: the worker is not asked."""
        return None

    async def encode_prompt(self, text: str) -> list[int]:
        """Return the ids of a whole prompt, with the special tokens that the worker would add.

        Raises: TokenizerFailed where the worker gives none.
        """
        return await self._encode(text, adds=True)

    async def encode_continuation(self, text: str) -> list[int]:
        """Return the ids of text that follows other tokens: nothing is added before or behind.

        Raises: TokenizerFailed where the worker gives none.
        """
        return await self._encode(text, adds=False)

    async def _encode(self, text: str, *, adds: bool) -> list[int]:
        body = msgspec.json.encode({"prompt": text, "add_special_tokens": adds})
        call = _own_call("POST", "/tokenize", body)
        try:
            reply = await self._forward(call)
            content = await reply.read(_MAX_CONTROL_REPLY_BYTES)
            if reply.status != 200:
                raise TokenizerFailed(f"the worker's /tokenize answered {reply.status}")
            return _decode_tokenize_reply(content).tokens
        except (EspalierError, msgspec.DecodeError) as error:
            raise TokenizerFailed(str(error)) from error


class TokenizerSource:
    """Finds the tokenizer on first need and keeps it; after a failure, looks again at a bounded rate."""

    def __init__(
        self,
        path: Path | None,
        *,
        retry_interval_s: float = RETRY_INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the tokenizer's place, if it is known.

        Raises: ConfigError where nothing is there.
        """
        self._found: Tokenizer | None = LocalTokenizer.load(path) if path is not None else None
        self._retry_interval_s = retry_interval_s
        self._clock = clock
        self._retry_at_s = clock()
        self._lock = asyncio.Lock()
        self._said: list[str] = []

    async def get(self, forward: Handler | None) -> Tokenizer | None:
        """Return the tokenizer, or None where there is none now. `forward` reaches a worker."""
        if self._found is not None or forward is None:
            return self._found
        async with self._lock:
            if self._found is None and self._clock() >= self._retry_at_s:
                self._found = await self._look(forward)
                self._retry_at_s = self._clock() + self._retry_interval_s
        return self._found

    async def _look(self, forward: Handler) -> Tokenizer | None:
        reasons: list[str] = []
        try:
            reply = await forward(_own_call("GET", "/model_info", b""))
            content = await reply.read(_MAX_CONTROL_REPLY_BYTES)
            path = _decode_model_info(content).tokenizer_path if reply.status == 200 else None
            if path is not None:
                return await asyncio.to_thread(LocalTokenizer.load, Path(path))
            reasons.append(f"/model_info answered {reply.status} without tokenizer_path")
        except (EspalierError, msgspec.DecodeError, OSError) as error:
            reasons.append(str(error))
        remote = WorkerTokenizer(forward)
        try:
            await remote.encode_prompt("a")
        except TokenizerFailed as error:
            reasons.append(str(error))
            self._say("tokenizer_not_found", reasons)
            return None
        self._say("tokenizer_is_the_workers", reasons)
        return remote

    def _say(self, event: str, reasons: list[str]) -> None:
        """Log what happened, once as long as it stays the same."""
        if reasons != self._said:
            self._said = reasons
            log.warning("%s reason=%r", event, "; ".join(reasons))


_Result = TypeVar("_Result")


async def _in_thread_if(is_long: bool, work: Callable[[], _Result]) -> _Result:  # noqa: FBT001  read as "if"
    return await asyncio.to_thread(work) if is_long else work()


def _own_call(method: str, path: str, body: bytes) -> Call:
    return Call(
        method=method,
        path=path,
        target=path.encode(),
        headers=[(b"content-type", b"application/json")],
        body=body,
        request_id="radix-tree-tokenizer",
    )
