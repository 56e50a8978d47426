"""Where the tokenizer comes from: a path, the path that a worker names, or the worker itself.

The tokenizer is looked for where `--tokenizer-path` says, else where the worker's `GET /model_info` says its
own lies, else the worker is asked to tokenise each text. What lies at a worker's path on this machine may be
another tokenizer, or one that its worker adds a beginning token to; so it is used only where it makes the
same ids of a probe as the worker, or where the worker cannot be asked.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from ..calls import Handler
from ..errors import EspalierError
from .tokenizer import LocalTokenizer, Tokenizer, TokenizerFailed
from .worker_tokenizer import MAX_REPLY_BYTES, WorkerTokenizer, own_call

log = logging.getLogger(__name__)

RETRY_INTERVAL_S = 1.0
"""How long a tokenizer that could not be found is not looked for again: two small calls a second at most."""


PROBE = "Probe: 1 + 1\n"
"""What the tokenizer that was found and the worker's own must make the same ids of."""


class _ModelInfo(msgspec.Struct):
    tokenizer_path: str | None = None


_decode_model_info = msgspec.json.Decoder(_ModelInfo).decode


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
        local: LocalTokenizer | None = None
        try:
            local = await asyncio.to_thread(LocalTokenizer.load, await _tokenizer_path(forward))
        except (EspalierError, OSError) as error:
            reasons.append(str(error))
        if local is not None:
            if await _makes_the_worker_s_ids(local, forward):
                return local
            reasons.append(f"what lies at its tokenizer_path makes other ids of {PROBE!r}")
        try:
            remote = await WorkerTokenizer.connect(forward)
        except TokenizerFailed as error:
            self._say("tokenizer_not_found", [*reasons, str(error)])
            return None
        self._say("tokenizer_is_the_workers", reasons)
        return remote

    def _say(self, event: str, reasons: list[str]) -> None:
        """Log what happened, once as long as it stays the same."""
        if reasons != self._said:
            self._said = reasons
            log.warning("%s reason=%r", event, "; ".join(reasons))


async def _tokenizer_path(forward: Handler) -> Path:
    """Return where a worker says that its tokenizer lies.

    Raises: TokenizerFailed where it does not say; EspalierError where none could be asked.
    """
    reply = await forward(own_call("GET", "/model_info", b""))
    content = await reply.read(MAX_REPLY_BYTES)
    try:
        path = _decode_model_info(content).tokenizer_path if reply.status == 200 else None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise TokenizerFailed(f"/model_info answered something else: {error}") from error
    if path is None:
        raise TokenizerFailed(f"/model_info answered {reply.status} without tokenizer_path")
    return Path(path)


async def _makes_the_worker_s_ids(local: LocalTokenizer, forward: Handler) -> bool:
    """Say whether both make the same ids of the probe, or the worker cannot be asked."""
    try:
        theirs = await WorkerTokenizer(forward).encode_prompt(PROBE)
    except TokenizerFailed:
        return True
    return theirs == await local.encode_prompt(PROBE)
