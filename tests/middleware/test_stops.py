"""How a reply ends: stops, trimmed, spelled out or inside a token, and characters that stay unfinished."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from espalier.calls import Call, JsonObject, Reply
from espalier.middleware import RadixTreeMiddleware

from .driver import call_of, ids_of, retrieve, streaming
from .tokenizers_made import byte_level, saved

DONE = b"data: [DONE]\n\n"


def told(ids: list[int], text: str, finish: JsonObject | None) -> JsonObject:
    meta = {"id": "r", "finish_reason": finish, "prompt_tokens": 1, "completion_tokens": len(ids)}
    return {"text": text, "output_ids": ids, "meta_info": meta}


class Ending:
    """A reply to the prompt `h`, whole or streamed, and the prompts that are sent after it."""

    def __init__(self, folder: Path, *, is_streamed: bool) -> None:
        self.middleware = RadixTreeMiddleware(tokenizer_path=saved(byte_level(), folder))
        self.is_streamed = is_streamed

    def answer(self, *replies: JsonObject, **params: Any) -> None:
        """Record the last of `replies`, the earlier ones being events before it."""
        chunks = [b"data: %b\n\n" % msgspec.json.encode(each) for each in replies]
        body = {"text": "h", "sampling_params": params, "stream": self.is_streamed}

        async def forward(call: Call) -> Reply:
            return Reply(status=200, headers=[], body=chunks[-1][6:-2])

        async def scenario() -> None:
            handler = streaming([*chunks, DONE]) if self.is_streamed else forward
            await (await self.middleware(call_of(body), handler)).read()

        asyncio.run(scenario())
        assert self.middleware.stats()["radix_tree_generations_recorded_total"] == 1

    def read_by_worker(self, text: str) -> list[int]:
        """Return the ids that a worker gets for the prompt `text`."""
        sent: list[list[int]] = []

        async def forward(call: Call) -> Reply:
            sent.append(call.json()["input_ids"])
            return Reply(status=500, headers=[], body=b"")

        asyncio.run(self.middleware(call_of({"text": text}), forward))
        return sent[0]


@pytest.fixture(params=[False, True], ids=["whole", "streamed"])
def ending(request: pytest.FixtureRequest, tmp_path: Path) -> Ending:
    return Ending(tmp_path, is_streamed=request.param)


H, X, HELLO = ids_of("h"), ids_of("x"), ids_of("hello")


@pytest.mark.parametrize(("trims", "shown"), [(True, "x"), (False, "xh")])
def test_token_that_goes_on_behind_a_stop_string_is_not_read_where_the_prompt_goes_on_otherwise(
    ending: Ending, trims: bool, shown: str
) -> None:
    he = HELLO[:1]
    assert ids_of("he") == he
    stop = {"type": "stop", "matched": "h"}
    ending.answer(told(X + he, shown, stop), stop=["h"], no_stop_trim=not trims)
    assert ending.read_by_worker("hxh!") == H + X + ids_of("h!")


def test_pattern_that_ended_a_reply_is_no_text_of_it(ending: Ending) -> None:
    ending.answer(told(X + HELLO, "xhello", {"type": "stop", "matched": "l+o"}), stop_regex="l+o")
    assert asyncio.run(retrieve(ending.middleware, text="hxhello")).tokens == H + X + HELLO
    assert asyncio.run(retrieve(ending.middleware, text="hxhellol+o")).matched_chars == len("hxhello")


def test_unfinished_character_at_the_end_is_read_as_it_was_sampled(ending: Ending) -> None:
    half = ids_of("🙂")[:2]
    finish = {"type": "length", "length": 3}
    ending.answer(told(X, "x", None), told(X + half, "x", None), told(X + half, "x\ufffd", finish))
    assert ending.read_by_worker("hx\ufffd!") == H + X + half + ids_of("!")


def test_character_that_was_unfinished_for_a_while_is_read_whole(ending: Ending) -> None:
    smile = ids_of("🙂")
    finish = {"type": "length", "length": 4}
    ending.answer(
        told(X + smile[:2], "x", None), told(X + smile[:3], "x\ufffd", None), told(X + smile, "x🙂", finish)
    )
    assert ending.read_by_worker("hx🙂!") == H + X + smile + ids_of("!")
