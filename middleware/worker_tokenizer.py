"""The worker's own tokenizer, over its `/tokenize` and `/detokenize`.

Used where the tokenizer's file is not at hand. The ids are the worker's own by construction. A worker that
cannot turn ids into text (no `/detokenize`) is good enough: then only whole generations are reused.
"""

import asyncio
from collections.abc import Sequence
from typing import Self, TypeVar

import msgspec

from ..calls import Call, Handler
from ..errors import EspalierError
from .cut import Decode
from .tokenizer import ANCHOR, Tokenizer, TokenizerFailed

MAX_CONCURRENT = 16
"""Calls at once: prompts of a whole batch must not crowd the generations out of the workers' HTTP servers."""

TIMEOUT_S = 30.0
"""How long a text may take. The worker tokenises on its event loop; a busy one answers late."""

MAX_REPLY_BYTES = 64 << 20
"""A longer answer is not read."""

MAX_SPELLINGS = 4096
"""How many spelled-out stops are remembered: more than a model has."""

CHAT = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}]
"""What the chat template is tried with."""


class _TokenizeReply(msgspec.Struct):
    tokens: list[list[int]]


class _ChatReply(msgspec.Struct):
    tokens: list[int]


class _DetokenizeReply(msgspec.Struct):
    text: list[str]


class WorkerTokenizer:
    """A `Tokenizer` that asks the workers. Made by `connect`."""

    vocabulary_size: int | None = None

    def __init__(self, forward: Handler) -> None:
        self._forward = forward
        self._turns = asyncio.Semaphore(MAX_CONCURRENT)
        self._anchor_ids: list[int] | None = None
        self._prefix_ids: list[int] = []
        self._detokenizes = False
        self._spellings: dict[tuple[int, ...], str] = {}
        self._learning: dict[tuple[int, ...], asyncio.Task[None]] = {}
        self.prompt_prefix = ""

    @classmethod
    async def connect(cls, forward: Handler) -> Self:
        """Return the tokenizer of the workers behind `forward`, and find out how it treats a text's start.

        Raises: TokenizerFailed where no worker tokenises.
        """
        made = cls(forward)
        plain, anchor, anchored = await made._encode_all(["x", ANCHOR, ANCHOR + "x"])
        if anchored != anchor + plain and anchored[: len(anchor)] == anchor:
            made._anchor_ids = anchor
        full = await made.encode_prompt("x")
        added = len(full) - len(plain)
        made._prefix_ids = full[
            : next((at for at in range(added + 1) if full[at:][: len(plain)] == plain), 0)
        ]
        try:
            (text,) = await made._decode_all([made._prefix_ids or plain], skips_special_tokens=False)
        except TokenizerFailed:
            return made
        made._detokenizes = True
        made.prompt_prefix = text if made._prefix_ids else ""
        await made._learn_chat_tokens()
        return made

    @property
    def decode(self) -> Decode | None:
        """Ids to text, from a thread; None where the worker does not do it."""
        return WorkerDecode(self, asyncio.get_running_loop()) if self._detokenizes else None

    def spell(self, ids: tuple[int, ...]) -> str:
        """Return the text of a few ids, or "" where it is not known yet: it is then asked for."""
        if self._detokenizes and ids not in self._spellings and ids not in self._learning:
            learning = asyncio.get_running_loop().create_task(self._learn(ids))
            self._learning[ids] = learning
            learning.add_done_callback(lambda _: self._learning.pop(ids))
        return self._spellings.get(ids, "")

    async def decode_prompt(self, ids: Sequence[int]) -> str | None:
        """Return the text of a whole prompt, without what `encode_prompt` puts in front, or None."""
        added = len(self._prefix_ids)
        texts = await self._texts_of([ids[added:] if list(ids[:added]) == self._prefix_ids else ids])
        return texts[0] if texts is not None else None

    async def decode_after(self, before: Sequence[int], tokens: Sequence[int]) -> str | None:
        """Return the text that `tokens` add to that of `before`, special tokens spelled out, or None."""
        texts = await self._texts_of([before, [*before, *tokens], tokens])
        if texts is None:
            return None
        shown, whole, alone = texts
        return whole[len(shown) :] if whole.startswith(shown) else alone

    async def encode_prompt(self, text: str) -> list[int]:
        """Return the ids of a whole prompt, with the special tokens that the worker would add.

        Raises: TokenizerFailed where the worker gives none.
        """
        (ids,) = await self._encode_all([text], adds=True)
        return ids

    async def encode_continuation(self, text: str) -> list[int]:
        """Return the ids of text that follows other tokens: nothing is added before or behind.

        Raises: TokenizerFailed where the worker gives none.
        """
        anchor = self._anchor_ids
        if anchor is None:
            (ids,) = await self._encode_all([text])
            return ids
        anchored, ids = await self._encode_all([ANCHOR + text, text])
        return anchored[len(anchor) :] if anchored[: len(anchor)] == anchor else ids

    async def detokenize(self, ids: Sequence[int], *, skips_special_tokens: bool) -> str:
        """Return the text of `ids`.

        Raises: TokenizerFailed where the worker gives none.
        """
        (text,) = await self._decode_all([ids], skips_special_tokens=skips_special_tokens)
        return text

    async def detokenize_inside(self, ids: Sequence[int], *, skips_special_tokens: bool) -> str:
        """Return the text of `ids` as it stands behind others: some decoders strip a space from the first.

        Raises: TokenizerFailed where the worker gives none.
        """
        anchor = self._anchor_ids
        if anchor is None:
            return await self.detokenize(ids, skips_special_tokens=skips_special_tokens)
        behind, alone = await self._decode_all(
            [[*anchor, *ids], ids], skips_special_tokens=skips_special_tokens
        )
        return behind.removeprefix(ANCHOR) if behind.startswith(ANCHOR) else alone

    async def _learn_chat_tokens(self) -> None:
        """Learn how the chat template's tokens are spelled: the first reply's stop is one of them."""
        try:
            content = await self._ask("/tokenize", {"messages": CHAT})
            ids = sorted(set(_decoded(content, _ChatReply).tokens))[:MAX_SPELLINGS]
            texts = await self._decode_all([[each] for each in ids], skips_special_tokens=False)
        except TokenizerFailed:  # it has no chat template
            return
        self._spellings = {(each,): text for each, text in zip(ids, texts, strict=True)}

    async def _learn(self, ids: tuple[int, ...]) -> None:
        try:
            text = await self.detokenize(ids, skips_special_tokens=False)
        except TokenizerFailed:
            return
        if len(self._spellings) < MAX_SPELLINGS:
            self._spellings[ids] = text

    async def _texts_of(self, rows: list[Sequence[int]]) -> list[str] | None:
        """Return the text of each row, or None where the worker gives none: a prompt can do without."""
        if not self._detokenizes:
            return None
        try:
            return await self._decode_all(rows, skips_special_tokens=False)
        except TokenizerFailed:
            return None

    async def _encode_all(self, texts: list[str], *, adds: bool = False) -> list[list[int]]:
        content = await self._ask("/tokenize", {"prompt": texts, "add_special_tokens": adds})
        rows = _decoded(content, _TokenizeReply).tokens
        if len(rows) != len(texts):
            raise TokenizerFailed("the worker's /tokenize answered other than one list of ids a text")
        return rows

    async def _decode_all(self, rows: list[Sequence[int]], *, skips_special_tokens: bool) -> list[str]:
        asked = [list(row) for row in rows if row]
        told: list[str] = []
        if asked:
            body = {"tokens": asked, "skip_special_tokens": skips_special_tokens}
            told = _decoded(await self._ask("/detokenize", body), _DetokenizeReply).text
        if len(told) != len(asked):
            raise TokenizerFailed("the worker's /detokenize answered other than one text a list of ids")
        texts = iter(told)
        return [next(texts) if row else "" for row in rows]

    async def _ask(self, path: str, body: dict[str, object]) -> bytes:
        call = own_call("POST", path, msgspec.json.encode(body))
        try:
            async with self._turns, asyncio.timeout(TIMEOUT_S):
                reply = await self._forward(call)
                content = await reply.read(MAX_REPLY_BYTES)
        except EspalierError as error:
            raise TokenizerFailed(f"the worker's {path}: {error}") from error
        except TimeoutError:
            raise TokenizerFailed(f"the worker's {path} did not answer within {TIMEOUT_S:g} s") from None
        if reply.status != 200:
            raise TokenizerFailed(f"the worker's {path} answered {reply.status}")
        return content


class WorkerDecode:
    """A `Decode` over HTTP, for one event loop. It waits for that loop: call it in another thread only."""

    def __init__(self, tokenizer: WorkerTokenizer, loop: asyncio.AbstractEventLoop) -> None:
        self._tokenizer = tokenizer
        self._loop = loop

    def __call__(self, ids: Sequence[int], *, skips_special_tokens: bool) -> str:
        """Return the text of `ids` as it stands behind others.

        Raises: TokenizerFailed where the worker gives none.
        """
        asked = self._tokenizer.detokenize_inside(ids, skips_special_tokens=skips_special_tokens)
        return asyncio.run_coroutine_threadsafe(asked, self._loop).result()


_: type[Tokenizer] = WorkerTokenizer


def own_call(method: str, path: str, body: bytes) -> Call:
    """Return a call of the tree's own to a worker."""
    return Call(
        method=method,
        path=path,
        target=path.encode(),
        headers=[(b"content-type", b"application/json")],
        body=body,
        request_id="radix-tree-tokenizer",
    )


_Reply = TypeVar("_Reply", _TokenizeReply, _ChatReply, _DetokenizeReply)


def _decoded(content: bytes, kind: type[_Reply]) -> _Reply:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise TokenizerFailed(f"the worker's tokenizer answered something else: {error}") from error
