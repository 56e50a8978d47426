"""What slime's router got wrong with its radix tree, each as a test of ours."""

import asyncio
from pathlib import Path

import msgspec

from espalier.calls import Call, Reply
from espalier.middleware import RadixTreeMiddleware

from .driver import IM_END, Setup, call_of, ids_of, says
from .tokenizers_made import byte_level, saved


def spelled(text: str) -> list[int]:
    """Return the text's ids one character at a time: another tokenisation than the tokenizer's own."""
    return [each for char in text for each in ids_of(char)]


def test_edge_splits_so_that_a_strict_prefix_of_a_reply_is_found(tmp_path: Path) -> None:
    setup = Setup(tmp_path, says("abcX", "abcY", "x"))
    setup.send(text="hello ")
    setup.send(text="hello ")
    setup.send(text="hello abc")
    assert setup.worker.sent[2]["input_ids"] == ids_of("hello ") + spelled("abc")


def test_lookup_goes_back_to_the_path_that_fits_and_is_not_greedy(tmp_path: Path) -> None:
    setup = Setup(tmp_path, says("ab", "abcd", "x"))
    setup.send(text="hello ")
    setup.send(text="hello ")
    setup.send(text="hello ab, and more")
    assert setup.worker.sent[2]["input_ids"] == ids_of("hello ") + spelled("ab") + ids_of(", and more")


def test_same_text_in_other_tokens_never_mixes_with_it(tmp_path: Path) -> None:
    replies = iter([ids_of("hello world"), spelled("hello world"), spelled(" on"), spelled(" off")])
    setup = Setup(tmp_path, lambda _: next(replies))
    for rid in "ab":
        setup.send(text="the ", rid=rid, session_id=rid)
    for rid in "ab":
        setup.send(text="the hello world", rid=rid * 2, session_id=rid)
    for rid, reply in (("aa", ids_of("hello world")), ("bb", spelled("hello world"))):
        tokens = setup.retrieve(rid=rid).tokens
        assert tokens[: len(ids_of("the ") + reply)] == ids_of("the ") + reply
        assert byte_level().decode(tokens).startswith("the hello world o")


def test_second_sibling_with_the_same_reply_keeps_its_own_logprobs(tmp_path: Path) -> None:
    setup = Setup(tmp_path, says("same"))
    for version in ("v1", "v2"):
        setup.worker.weight_version = version
        setup.send(text="hello", rid=version)
    for reply in setup.worker.replies:
        found = setup.retrieve(rid=reply["meta_info"]["id"], return_logp=True)
        assert isinstance(found.rollout_logp, list)
        assert found.rollout_logp[-4:] == [each[0] for each in reply["meta_info"]["output_token_logprobs"]]


def test_short_prompt_does_not_contaminate_a_longer_one(tmp_path: Path) -> None:
    setup = Setup(tmp_path, says("!", "!", "!"))
    for text in ("hel", "hello wor", "hello world"):
        setup.send(text=text)
        assert setup.worker.sent[-1]["input_ids"] == byte_level().encode(text).ids
        assert setup.retrieve(text=text + "!").tokens == byte_level().encode(text).ids + ids_of("!")


def test_prompt_recorded_by_ids_does_not_decide_how_the_same_text_is_tokenised(tmp_path: Path) -> None:
    setup = Setup(tmp_path, says("!", "!"))
    setup.send(input_ids=spelled("hello world"))
    setup.send(text="hello world")
    assert setup.worker.sent[1]["input_ids"] == ids_of("hello world")


def test_budget_is_kept_with_textual_weight_versions_and_long_chains(tmp_path: Path) -> None:
    turns = 510  # a generation and a context each: deeper than Python's call stack
    setup = Setup(tmp_path, says("a"), max_cached_tokens=2 * turns + 10)

    async def play() -> None:
        text = "hello"
        for turn in range(turns):
            setup.worker.weight_version = f"step-{turn}"
            await setup.read({"text": text, "rid": str(turn)})
            text += "ab"

    asyncio.run(play())
    assert setup.stat("evicted_tokens_total") == 0
    assert len(setup.retrieve(rid=str(turns - 1)).tokens) == len(ids_of("hello")) + 2 * turns - 1
    for _ in range(4):
        setup.send(input_ids=ids_of("the quick brown fox" * 80))
    assert setup.stat("evicted_tokens_total") > 0
    assert setup.stat("cached_tokens") <= 2 * turns + 10


def test_rewrite_reaches_the_worker(tmp_path: Path) -> None:
    setup = Setup(tmp_path, says("x"))
    call = call_of({"text": "hello", "stream": False})
    asyncio.run(setup.middleware(call, setup.worker))
    assert msgspec.json.decode(setup.worker.calls[0].body) == {
        "stream": False,
        "input_ids": ids_of("hello"),
        "return_logprob": True,
    }


def test_abort_or_error_is_answered_at_once_and_asked_once(tmp_path: Path) -> None:
    middleware = RadixTreeMiddleware(tokenizer_path=saved(byte_level(), tmp_path))
    seen: list[Call] = []

    async def forward(call: Call) -> Reply:
        seen.append(call)
        return Reply(status=400, headers=[], body=b"{}")

    async def scenario() -> None:
        async with asyncio.timeout(5):
            await middleware(call_of({"text": "hello"}), forward)

    asyncio.run(scenario())
    assert len(seen) == 1


def test_batch_of_texts_is_answered_and_recorded(tmp_path: Path) -> None:
    setup = Setup(tmp_path, says("x", "y"))
    content = asyncio.run(setup.read({"text": ["hello", "there"], "rid": "r"}))
    assert [each["text"] for each in msgspec.json.decode(content)] == ["x", "y"]
    for at, text in enumerate(["hello", "there"]):
        assert setup.retrieve(rid=f"r_{at}").tokens == ids_of(text) + ids_of("xy"[at])


def test_ids_callers_are_matched_by_ids_and_not_by_what_they_decode_to(tmp_path: Path) -> None:
    half = ids_of("🙂")[:1]
    setup = Setup(tmp_path, says("x", "y", "z"))
    setup.send(input_ids=[*half, 7], rid="half")
    setup.send(input_ids=[*ids_of("\ufffd"), 7], rid="spelled")
    setup.send(input_ids=[*ids_of("hello"), IM_END], rid="special")
    prompts = {"half": [*half, 7], "spelled": [*ids_of("\ufffd"), 7], "special": [*ids_of("hello"), IM_END]}
    for rid, prompt in prompts.items():
        assert setup.retrieve(rid=rid).tokens[:-1] == prompt


def test_prompt_with_an_earlier_response_is_looked_up_whole(tmp_path: Path) -> None:
    setup = Setup(tmp_path, says("first half", " second half"))
    setup.send(text="hello ")
    setup.send(text="hello first half")
    found = setup.retrieve(text="hello first half second half")
    assert found.response == "first half second half"
    assert found.tokens == ids_of("hello ") + spelled("first half second half")
    assert found.loss_mask == [0] * len(ids_of("hello ")) + [1] * len("first half second half")
