"""Where the tokenizer comes from: a path, the path that a worker names, or the worker itself.

The tokenizer is looked for where `--middleware-arg radix_tree.tokenizer_path` says, else where the worker's
`GET /model_info` says its own lies, else the worker is asked to tokenise each text (`POST /tokenize`).
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from ..calls import Call, Handler
from ..errors import EspalierError
from .cut import Decode
from .tokenizer import LocalTokenizer, Tokenizer, TokenizerFailed

log = logging.getLogger(__name__)

RETRY_INTERVAL_S = 1.0
"""How long a tokenizer that could not be found is not looked for again: two small calls a second at most."""


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


def _own_call(method: str, path: str, body: bytes) -> Call:
    return Call(
        method=method,
        path=path,
        target=path.encode(),
        headers=[(b"content-type", b"application/json")],
        body=body,
        request_id="radix-tree-tokenizer",
    )
