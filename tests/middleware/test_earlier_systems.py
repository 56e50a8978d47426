"""What slime's radix tree and miles' sessions got wrong or cannot do, each as a test of ours."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tokenizers

from espalier.calls import Call, Reply
from espalier.errors import BadRequest
from espalier.middleware import RadixTreeMiddleware
from espalier.middleware.tokenizer import INLINE_TEXT_CHARS, LocalTokenizer
from espalier.router.app import create_app
from espalier.router.settings import RouterSettings
from espalier.simulator.app import create_app as create_worker
from espalier.simulator.settings import WorkerSettings
from tests.router.running import router, serving
from tests.serving import serve

from .driver import IM_END, Setup, answering, call_of, capture, ids_of, says
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


def test_old_parent_of_a_newer_reply_stays_as_long_as_that_and_prompts_go_with_their_last_reply(
    tmp_path: Path,
) -> None:
    setup = Setup(tmp_path, says("a"), max_cached_tokens=40)
    for version in ("1", "2"):
        setup.worker.weight_version = version
        setup.send(text="hello" if version == "1" else "helloa, ", rid=version)
    setup.send(text="x" * 20, rid="other")
    assert [span.version for span in setup.retrieve(rid="2").weight_versions] == ["1", "2"]
    assert len(setup.retrieve(rid="1").tokens) == len(ids_of("hello")) + 1
    setup.send(input_ids=[70] * 40, rid="large")
    assert setup.stat("trajectories") == 0
    assert setup.stat("cached_tokens") == setup.stat("cached_bytes") == 0


def test_long_text_is_tokenised_beside_the_event_loop() -> None:
    threads: set[int] = set()

    class Watch:
        def pre_tokenize(self, _: tokenizers.PreTokenizedString) -> None:
            threads.add(threading.get_ident())

    watched = tokenizers.Tokenizer(byte_level().model)
    watched.pre_tokenizer = tokenizers.pre_tokenizers.PreTokenizer.custom(Watch())
    tokenizer = LocalTokenizer(watched)
    threads.clear()
    asyncio.run(tokenizer.encode_prompt("x" * (INLINE_TEXT_CHARS + 1)))
    asyncio.run(tokenizer.encode_continuation("x" * (INLINE_TEXT_CHARS + 1)))
    assert threads
    assert threading.get_ident() not in threads


def test_reply_without_output_ids_is_recorded(tmp_path: Path) -> None:
    setup = Setup(tmp_path, says("hello"))
    answer = setup.worker.answer({"input_ids": [7], "return_logprob": True, "rid": "r"})
    sampled = answer.pop("output_ids")
    asyncio.run(setup.middleware(call_of({"input_ids": [7]}), answering(msgspec.json.encode(answer))))
    assert setup.retrieve(rid="r").tokens == [7, *sampled]


def test_reply_that_cannot_be_recorded_is_counted_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    setup = Setup(tmp_path, says("hello"))
    asyncio.run(setup.middleware(call_of({"input_ids": [7]}), answering(b'{"meta_info": {"id": "r"}}')))
    assert setup.stat("record_failures_total") == 1
    assert "neither output_ids nor output_token_logprobs" in caplog.text


def test_rewrite_reaches_the_worker(tmp_path: Path) -> None:
    setup = Setup(tmp_path, says("x"))
    call = call_of({"text": "hello", "stream": False})
    asyncio.run(setup.middleware(call, setup.worker))
    assert msgspec.json.decode(setup.worker.calls[0].body) == {
        "stream": False,
        "input_ids": ids_of("hello"),
        "return_logprob": True,
    }


@pytest.mark.parametrize(
    ("status", "content"), [(200, msgspec.json.encode(capture("abort_running_result"))), (400, b"{}")]
)
def test_abort_or_error_is_answered_at_once_and_asked_once(
    tmp_path: Path, status: int, content: bytes
) -> None:
    middleware = RadixTreeMiddleware(tokenizer_path=saved(byte_level(), tmp_path))
    seen: list[Call] = []

    async def forward(call: Call) -> Reply:
        seen.append(call)
        return Reply(status=status, headers=[], body=content)

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


def test_empty_text_is_refused_with_a_reason(tmp_path: Path) -> None:
    setup = Setup(tmp_path, says("x"))
    for body in ({"text": ""}, {"text": ["a", ""]}):
        with pytest.raises(BadRequest, match="must hold at least one character"):
            asyncio.run(setup.raw(body))
    with pytest.raises(BadRequest, match="not empty"):
        setup.retrieve(text="")


def test_retrieval_without_the_tree_is_no_server_error() -> None:
    with serve(create_worker(WorkerSettings())) as worker, router(worker) as client:
        reply = client.post("/retrieve_from_text", json={"text": "hello"})
    assert reply.status_code == 404


def test_tree_is_on_unless_it_is_turned_off() -> None:
    with (
        serve(create_worker(WorkerSettings(decode_step_s=0))) as worker,
        serving(create_app(RouterSettings(worker_urls=(worker,)))) as client,
    ):
        said = client.post("/generate", json={"text": "hello", "sampling_params": {"max_new_tokens": 4}})
        found = client.post("/retrieve_from_text", json={"text": "hello" + said.json()["text"]})
    assert found.json()["tokens"][-4:] == said.json()["output_ids"]
    assert found.json()["loss_mask"][-4:] == [1, 1, 1, 1]


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


def test_agent_may_go_back_any_number_of_turns(tmp_path: Path) -> None:
    setup = Setup(tmp_path, says("one", "two", "six", "ten"))
    texts = ["hello "]
    for number in range(4):
        reply = setup.send(text=texts[-1], rid=str(number), session_id="s")
        texts.append(texts[-1] + reply["text"] + ", ")
    known = [setup.worker.sent[number]["input_ids"] for number in range(4)]
    for number, text in enumerate(texts[:4]):
        setup.send(text=text, session_id="s")
        assert setup.worker.sent[-1]["input_ids"] == known[number]
    assert [setup.retrieve(rid=str(number)).tokens[:-3] for number in range(4)] == known


@pytest.mark.parametrize("finish", [{"type": "length", "length": 3}, {"type": "abort", "message": "Aborted"}])
def test_reply_that_was_cut_short_can_be_continued(tmp_path: Path, finish: dict[str, object]) -> None:
    setup = Setup(tmp_path, says("one", "two"))
    setup.worker.finish = finish
    first = setup.send(text="hello ", rid="first")
    second = setup.send(text="hello one", rid="second")
    found = setup.retrieve(rid="second", return_logp=True)
    assert found.tokens == ids_of("hello ") + first["output_ids"] + second["output_ids"]
    assert found.loss_mask == [0] * len(ids_of("hello ")) + [1] * 6
    given = [each[0] for reply in (first, second) for each in logprob_entries(setup, reply)]
    assert found.rollout_logp == [0.0] * len(ids_of("hello ")) + given


def logprob_entries(setup: Setup, reply: dict[str, Any]) -> list[Any]:
    """Return what the worker told of a reply's tokens, which the client had not asked for."""
    (said,) = (each for each in setup.worker.replies if each["meta_info"]["id"] == reply["meta_info"]["id"])
    entries: list[Any] = said["meta_info"]["output_token_logprobs"]
    return entries


def test_session_may_have_thousands_of_replies(tmp_path: Path) -> None:
    setup = Setup(tmp_path, lambda prompt: ids_of(str(len(prompt))))

    async def play() -> None:
        for number in range(1100):
            body = {"input_ids": [70] * (number % 50 + 1), "rid": str(number), "session_id": "s"}
            await setup.read(body)

    asyncio.run(play())
    assert setup.stat("trajectories") == 1100
    assert setup.retrieve(rid="0").tokens == [70, *ids_of("1")]


def test_two_calls_of_a_session_at_the_same_time_are_both_recorded(tmp_path: Path) -> None:
    setup = Setup(tmp_path, says("one", "two"))

    async def play() -> None:
        bodies = [{"text": "hello ", "rid": rid, "session_id": "s"} for rid in "ab"]
        await asyncio.gather(*(setup.read(body) for body in bodies))

    asyncio.run(play())
    found = [setup.retrieve(rid=rid) for rid in "ab"]
    assert sorted(each.response or "" for each in found) == ["one", "two"]
    assert all(each.loss_mask == [0] * len(ids_of("hello ")) + [1] * 3 for each in found)
