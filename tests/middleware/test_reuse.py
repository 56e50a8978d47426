"""Long replies are cut in a thread: what the event loop does meanwhile must not harm them."""

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from espalier.middleware.reuse import INLINE_CUT_TOKENS, match_text, text_before
from espalier.middleware.tokenizer import INLINE_TOKENS
from espalier.middleware.tree import TokenTree

from .driver import Setup, call_of, ids_of
from .test_tree import decode, opened, record

END = " and so on"


class SlowDecode:
    """Decodes in its own time: says that it began, and goes on when it is told to."""

    def __init__(self) -> None:
        self.has_begun = threading.Event()
        self.may_go_on = threading.Event()
        self.threads: set[int] = set()

    def __call__(self, ids: Sequence[int], *, skips_special_tokens: bool) -> str:
        self.threads.add(threading.get_ident())
        self.has_begun.set()
        assert self.may_go_on.wait(timeout=30)
        return decode(ids, skips_special_tokens=skips_special_tokens)


def long_reply(tokens: int) -> str:
    text = "the quick brown fox jumps over the lazy dog," * (tokens // 8) + END
    assert len(ids_of(text)) > tokens
    return text


def test_reply_that_is_cut_in_a_thread_outlives_the_budget() -> None:
    reply = long_reply(INLINE_CUT_TOKENS)
    tree = TokenTree(max_cached_tokens=len(ids_of("hello" + reply)) + 3, max_cached_bytes=10**9)
    slow = SlowDecode()

    async def scenario() -> None:
        record(tree, opened(tree, "hello"), "long", reply)
        text = "hello" + reply[:-100] + "!"
        matching = asyncio.create_task(match_text(tree, text, None, slow))
        await asyncio.to_thread(slow.has_begun.wait, 30)
        record(tree, opened(tree, "another"), "other", "z")
        assert tree.get("long") is not None
        slow.may_go_on.set()
        prefix = await matching
        assert decode(prefix.tokens) == text[: prefix.matched_chars]
        assert prefix.matched_chars > len(text) - 20
        tree.release(prefix)

    asyncio.run(scenario())
    assert threading.get_ident() not in slow.threads
    assert tree.get("long") is not None
    record(tree, opened(tree, "yet another"), "third", "z")
    assert tree.get("long") is None


def test_call_that_ends_while_its_reply_is_cut_lets_go_of_it() -> None:
    reply = long_reply(INLINE_CUT_TOKENS)
    tree = TokenTree(max_cached_tokens=10**6, max_cached_bytes=10**9)
    generation = record(tree, opened(tree, "hello"), "long", reply)
    slow = SlowDecode()

    async def scenario() -> None:
        matching = asyncio.create_task(match_text(tree, "hello" + reply[:-100] + "!", None, slow))
        await asyncio.to_thread(slow.has_begun.wait, 30)
        assert generation.holders == 1
        matching.cancel()
        slow.may_go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await matching

    asyncio.run(scenario())
    assert generation.holders == 0


def test_short_reply_is_cut_at_once() -> None:
    tree = TokenTree(max_cached_tokens=10**6, max_cached_bytes=10**9)
    record(tree, opened(tree, "hello"), "short", "the quick brown fox")
    slow = SlowDecode()
    slow.may_go_on.set()
    prefix = asyncio.run(match_text(tree, "hellothe quick brown!", None, slow))
    assert decode(prefix.tokens) == "hellothe quick brown"
    assert slow.threads == {threading.get_ident()}


def test_prompt_by_ids_that_leaves_a_long_reply_is_decoded_in_a_thread() -> None:
    reply = long_reply(INLINE_TOKENS)
    tree = TokenTree(max_cached_tokens=10**6, max_cached_bytes=10**9)
    record(tree, opened(tree, "hello"), "long", reply)
    slow = SlowDecode()
    slow.may_go_on.set()
    ids = [*ids_of("hello"), *ids_of(reply)[:-4]]
    prefix = tree.match_ids(ids, None)
    text = asyncio.run(text_before(tree, prefix, slow))
    assert text == decode(ids)
    assert threading.get_ident() not in slow.threads


def test_long_reply_that_is_edited_reuses_its_tokens_up_to_there(tmp_path: Path) -> None:
    reply = long_reply(INLINE_CUT_TOKENS)
    sampled = ids_of(reply)
    setup = Setup(tmp_path, lambda _: sampled)

    async def scenario() -> None:
        await setup.read({"text": "hello", "rid": "long"})
        edited = "hello" + reply.removesuffix(END) + "!"
        calls = (setup.middleware(call_of({"text": edited}), setup.worker) for _ in range(4))
        await asyncio.gather(*calls)

    asyncio.run(scenario())
    expected = ids_of("hello") + sampled[: -len(ids_of(END))] + ids_of("!")
    assert [sent["input_ids"] for sent in setup.worker.sent[1:]] == [expected] * 4
