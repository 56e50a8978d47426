"""Batches and n > 1: each generation is recorded after its own prompt; each client gets what it asked for."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tokenizers

from espalier.calls import Call, JsonObject, Reply
from espalier.errors import BadRequest
from espalier.middleware import RadixTreeMiddleware

from .driver import CAPTURES, IM_END, Setup, answering, call_of, ids_of, retrieve, says
from .tokenizers_made import saved

BATCHES = [
    "abort_n2_result",
    "abort_one_of_batch_result",
    "generate_batch2_n2",
    "generate_batch_ids_rids_params_list",
    "generate_batch_of_one",
    "generate_batch_rid_string",
    "generate_n2",
    "generate_n2_rid",
]


def captured_batch(name: str) -> tuple[JsonObject, list[JsonObject]]:
    document = msgspec.json.decode((CAPTURES / f"{name}.json").read_bytes())
    return document["request"]["body"], document["response"]["json"]


def of_list(value: Any, count: int) -> list[Any]:
    return value if isinstance(value, list) else [value] * count


@pytest.mark.parametrize("name", BATCHES)
def test_every_generation_of_a_captured_batch_is_recorded_after_its_prompt(name: str) -> None:
    body, answers = captured_batch(name)
    middleware = RadixTreeMiddleware()
    content = msgspec.json.encode(answers)
    wants = {**body, "return_logprob": True}
    reply = asyncio.run(middleware(call_of(wants), answering(content)))
    assert reply.body == content
    prompts = body["input_ids"] if isinstance(body["input_ids"][0], list) else [body["input_ids"]]
    samples = len(answers) // len(prompts)
    for at, answer in enumerate(answers):
        prompt = prompts[at // samples]
        found = asyncio.run(retrieve(middleware, rid=answer["meta_info"]["id"], return_logp=True))
        assert found.tokens == [*prompt, *answer["output_ids"]]
        logprobs = answer["meta_info"].get("output_token_logprobs")
        if logprobs is not None:
            assert isinstance(found.rollout_logp, list)
            assert found.rollout_logp[len(prompt) :] == [each[0] for each in logprobs]
    stats = middleware.stats()
    assert stats["radix_tree_record_failures_total"] == 0
    assert stats["radix_tree_calls_recorded_total"] == 1
    assert stats["radix_tree_generations_recorded_total"] == len(answers)
    assert stats["radix_tree_prompt_tokens_total"] == sum(map(len, prompts))


def test_texts_of_a_batch_go_to_the_worker_as_lists_of_ids(tmp_path: Path) -> None:
    setup = Setup(tmp_path, says("x", "y", "z"))
    content = asyncio.run(setup.read({"text": ["hello", "the quick", "hello"], "rid": "r"}))
    (sent,) = setup.worker.sent
    assert sent == {
        "rid": "r",
        "input_ids": [ids_of("hello"), ids_of("the quick"), ids_of("hello")],
        "return_logprob": True,
    }
    assert b"logprob" not in content
    assert [setup.retrieve(rid=f"r_{at}").response for at in range(3)] == ["x", "y", "z"]
    assert setup.stat("reused_tokens_total") == len(ids_of("hello"))


def test_batch_of_one_is_answered_with_a_list(tmp_path: Path) -> None:
    setup = Setup(tmp_path, says("x"))
    content = asyncio.run(setup.read({"text": ["hello"]}))
    assert [each["text"] for each in msgspec.json.decode(content)] == ["x"]
    assert setup.worker.sent[0]["input_ids"] == [ids_of("hello")]


def test_batch_that_names_no_image_for_any_prompt_is_recorded(tmp_path: Path) -> None:
    setup = Setup(tmp_path, says("x"))
    asyncio.run(setup.read({"text": ["hello", "there"], "image_data": [None, []]}))
    assert setup.stat("generations_recorded_total") == 2


def test_siblings_of_one_call_share_their_prompt_and_nothing_else(tmp_path: Path) -> None:
    setup = Setup(tmp_path, says("same", "same", "other"))
    answers = msgspec.json.decode(
        asyncio.run(setup.read({"text": "hello", "sampling_params": {"n": 3}, "return_logprob": True}))
    )
    rids = [each["meta_info"]["id"] for each in answers]
    found = [setup.retrieve(rid=rid, return_logp=True) for rid in rids]
    assert [each.response for each in found] == ["same", "same", "other"]
    assert setup.stat("cached_tokens") == len(ids_of("hello")) + 4 + 4 + 5
    assert setup.stat("prompt_tokens_total") == len(ids_of("hello"))
    assert setup.worker.sent[0]["input_ids"] == ids_of("hello")


def test_each_prompt_of_a_batch_gets_the_logprobs_that_its_client_asked_for(tmp_path: Path) -> None:
    setup = Setup(tmp_path, says("x", "y", "z"))
    body = {
        "input_ids": [[50], [51], [52]],
        "return_logprob": [True, False, None],
        "logprob_start_len": 0,
        "top_logprobs_num": [3, 4, 5],
        "token_ids_logprob": [7, 8],
    }
    answers = msgspec.json.decode(asyncio.run(setup.read({**body, "rid": "r"})))
    (sent,) = setup.worker.sent
    assert sent["return_logprob"] is True
    assert sent["logprob_start_len"] == [0, -1, -1]
    assert sent["top_logprobs_num"] == [3, 0, 0]
    assert sent["token_ids_logprob"] == [[7, 8], [], []]
    assert ["output_token_logprobs" in each["meta_info"] for each in answers] == [True, False, False]
    for at in range(3):
        found = setup.retrieve(rid=f"r_{at}", return_logp=True)
        assert isinstance(found.rollout_logp, list)
        assert found.rollout_logp[1] < 0


@pytest.mark.parametrize(
    ("given", "sent"), [(5, [[5], []]), ([[1], [2]], [[1], []]), ([[1]], [[1]]), (None, None)]
)
def test_token_ids_of_a_batch_are_read_as_sglang_reads_them(tmp_path: Path, given: Any, sent: Any) -> None:
    setup = Setup(tmp_path, says("x"))
    body = {"input_ids": [[50], [51]], "return_logprob": [True, False], "token_ids_logprob": given}
    asyncio.run(setup.read(body))
    assert setup.worker.sent[0].get("token_ids_logprob") == sent


def test_stop_tokens_are_told_apart_by_each_prompts_own_parameters(tmp_path: Path) -> None:
    setup = Setup(tmp_path, says("x", stop=True))
    params = [{"no_stop_trim": True, "skip_special_tokens": False}, {"skip_special_tokens": False}, {}]
    body = {"text": ["hello", "there", "so on"], "sampling_params": params, "rid": "r"}
    texts = [each["text"] for each in msgspec.json.decode(asyncio.run(setup.read(body)))]
    assert texts == ["x<|im_end|>", "x", "x"]
    for prompt in ("hello", "there", "so on"):
        asked = setup.send(text=prompt + "x<|im_end|>\n")
        assert asked["meta_info"]["prompt_tokens"] == len(setup.worker.sent[-1]["input_ids"])
        assert setup.worker.sent[-1]["input_ids"] == [*ids_of(prompt), *ids_of("x"), IM_END, *ids_of("\n")]


def test_one_answer_that_cannot_be_recorded_leaves_the_others_alone(tmp_path: Path) -> None:
    setup = Setup(tmp_path, says("x"))
    answers = [setup.worker.answer({"input_ids": [50 + at], "rid": f"r{at}"}) for at in range(3)]
    answers[1]["meta_info"]["completion_tokens"] = 9
    content = msgspec.json.encode(answers)
    body = {"input_ids": [[50], [51], [52]]}
    assert asyncio.run(setup.middleware(call_of(body), answering(content))).body == content
    assert setup.stat("generations_recorded_total") == 2
    assert setup.stat("record_failures_total") == 1


@pytest.mark.parametrize(
    "content", [b"[]", b"{}", b"[1,2,3]", b"nothing", b'[{"meta_info":1},{}]', b"[null,7]"]
)
def test_list_that_nobody_expects_reaches_the_client_as_it_is(content: bytes) -> None:
    middleware = RadixTreeMiddleware()
    reply = asyncio.run(middleware(call_of({"input_ids": [[1], [2]]}), answering(content)))
    assert reply.body == content
    assert middleware.stats()["radix_tree_record_failures_total"] > 0
    assert middleware.stats()["radix_tree_cached_tokens"] == 0


def test_prompt_of_a_batch_of_which_the_tokenizer_makes_nothing_is_refused_by_its_place(
    tmp_path: Path,
) -> None:
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="b"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    middleware = RadixTreeMiddleware(tokenizer_path=saved(words, tmp_path))
    with pytest.raises(BadRequest, match=r"`text\[2\]`"):
        asyncio.run(middleware(call_of({"text": ["a", "b", "  "]}), answering(b"[]")))
    assert middleware.stats()["radix_tree_cached_tokens"] == 0


def test_others_get_their_turn_between_the_prompts_of_a_batch(tmp_path: Path) -> None:
    setup = Setup(tmp_path, says("x"))
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def scenario() -> None:
        task = asyncio.create_task(other())
        await setup.read({"text": ["hello"] * 20})
        task.cancel()

    asyncio.run(scenario())
    assert turns >= 2 * 19


def test_prompts_of_a_batch_are_let_go_of_where_one_cannot_be_tokenised(tmp_path: Path) -> None:
    worker = Setup(tmp_path, says("x")).worker
    middleware = RadixTreeMiddleware()  # it asks the worker to tokenise
    call = call_of({"text": ["hello", "there"]})
    held: list[float] = []

    async def forward(forwarded: Call) -> Reply:
        if forwarded is call:
            held.append(middleware.stats()["radix_tree_cached_tokens"])
            return Reply.of_json([])
        if forwarded.path == "/tokenize" and "there" in str(forwarded.json().get("prompt")):
            return Reply.of_json({}, 500)
        return await worker(forwarded)

    asyncio.run(middleware(call, forward))
    assert held == [0]
    assert middleware.stats()["radix_tree_passed_through_no_tokenizer_total"] == 1
