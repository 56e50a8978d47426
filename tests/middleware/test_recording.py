import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from espalier.calls import Call, Reply
from espalier.errors import UpstreamError
from espalier.middleware import RadixTreeMiddleware, middlewares

from .driver import (
    Body,
    Setup,
    answering,
    call_of,
    capture,
    captured_generations,
    ids_of,
    retrieve,
    says,
)
from .fake_worker import logprob
from .tokenizers_made import byte_fallback, byte_level, saved


def test_text_goes_to_the_worker_as_the_tokenizers_ids(tmp_path: Path) -> None:
    setup = Setup(tmp_path, says("x"))
    setup.send(text="hello world 🙂", sampling_params={"temperature": 0})
    (sent,) = setup.worker.sent
    assert sent["input_ids"] == byte_level().encode("hello world 🙂").ids
    assert "text" not in sent
    assert sent["return_logprob"] is True
    assert sent["sampling_params"] == {"temperature": 0}


def test_call_by_ids_that_asks_for_logprobs_goes_and_comes_back_byte_for_byte(tmp_path: Path) -> None:
    setup = Setup(tmp_path, says("hello"))
    body = {"input_ids": ids_of("the quick"), "return_logprob": True, "later_field": [1, 2]}
    call = call_of(body)
    reply = asyncio.run(setup.middleware(call, setup.worker))
    assert setup.worker.calls == [call]
    assert reply.body == msgspec.json.encode(setup.worker.replies[0])
    assert setup.stat("calls_recorded_total") == 1


def test_reply_lacks_what_the_client_had_not_asked_for_and_keeps_the_rest_as_it_was(tmp_path: Path) -> None:
    with_logprobs = capture("generate_text_logprob")
    content = msgspec.json.encode(with_logprobs)
    middleware = RadixTreeMiddleware(tokenizer_path=saved(byte_level(), tmp_path))
    reply = asyncio.run(middleware(call_of({"input_ids": [5, 6, 7, 8]}), answering(content)))
    assert isinstance(reply.body, bytes)
    expected = msgspec.json.decode(content)
    for key in ("input_token_logprobs", "output_token_logprobs", "output_token_logprobs_length"):
        del expected["meta_info"][key]
    assert reply.body == msgspec.json.encode(expected)
    assert list(expected["meta_info"]) == list(capture("generate_text_no_logprob")["meta_info"])


def test_logprob_options_of_a_client_that_wants_no_logprobs_are_not_sent(tmp_path: Path) -> None:
    setup = Setup(tmp_path, says("x"))
    setup.send(text="hello", logprob_start_len=0, top_logprobs_num=5)
    assert not {"logprob_start_len", "top_logprobs_num"} & set(setup.worker.sent[0])


def test_put_is_recorded_as_post_is(tmp_path: Path) -> None:
    setup = Setup(tmp_path, says("hello"))
    asyncio.run(setup.read({"text": "the quick", "rid": "put"}, method="PUT"))
    assert setup.worker.calls[0].method == "PUT"
    assert setup.retrieve(rid="put").tokens == ids_of("the quick") + setup.worker.replies[0]["output_ids"]


def test_recorded_tokens_and_logprobs_are_those_of_the_reply(tmp_path: Path) -> None:
    setup = Setup(tmp_path, says("hello 你好🙂", stop=True))
    reply = setup.send(text="the quick", return_logprob=True)
    found = setup.retrieve(text="the quick" + reply["text"], return_logp=True)
    prompt = byte_level().encode("the quick").ids
    triples = reply["meta_info"]["output_token_logprobs"]
    assert found.tokens == prompt + reply["output_ids"]
    assert found.rollout_logp == [0.0] * len(prompt) + [each[0] for each in triples]
    assert found.loss_mask == [0] * len(prompt) + [1] * len(triples)
    assert found.response == reply["text"]
    assert found.token_length == found.loss_mask_length == len(found.tokens)
    assert found.matched_tokens == len(found.tokens)
    (span,) = found.weight_versions
    assert (span.version, span.start, span.end) == ("v1", len(prompt), len(found.tokens))


def test_weight_update_within_a_reply_gives_spans(tmp_path: Path) -> None:
    content = msgspec.json.encode(capture("upd_paused_in_place_flushFalse_inflight"))
    middleware = RadixTreeMiddleware()
    asyncio.run(middleware(call_of({"input_ids": [50, 51]}), answering(content)))
    found = asyncio.run(retrieve(middleware, rid="u-in_place-False"))
    spans = [(span.version, span.start, span.end) for span in found.weight_versions]
    assert spans == [("base", 2, 181), ("in_place-False", 181, 402)]


def test_siblings_share_the_prompt_and_keep_their_own_logprobs(tmp_path: Path) -> None:
    versions = ["v1", "v2"]
    setup = Setup(tmp_path, says("same", "same"))
    for version, session in zip(versions, "ab", strict=True):
        setup.worker.weight_version = version
        setup.send(text="the quick brown", rid=f"rid-{version}", session_id=session)
    for version, session in zip(versions, "ab", strict=True):
        by_session = setup.retrieve(text="the quick brownsame", session_id=session, return_logp=True)
        by_rid = setup.retrieve(rid=f"rid-{version}", return_logp=True)
        assert by_session.rollout_logp == by_rid.rollout_logp
        assert by_session.rollout_logp is not msgspec.UNSET
        assert by_session.rollout_logp[-1] == logprob(by_session.tokens, version)
    assert setup.retrieve(text="the quick brownsame").weight_versions[0].version == "v2"
    assert setup.stat("cached_tokens") == len(ids_of("the quick brown")) + 2 * 4


def test_session_may_be_named_in_a_header(tmp_path: Path) -> None:
    setup = Setup(tmp_path, says("same", "same"))
    names = ("x-smg-routing-key", "x-session-id")
    for name in names:
        header = (name.encode(), name.encode())
        asyncio.run(setup.read({"text": "hello", "rid": name}, headers=[header]))
    for name in names:
        found = setup.retrieve(text="hellosame", session_id=name, return_logp=True)
        assert found.rollout_logp == setup.retrieve(rid=name, return_logp=True).rollout_logp


def test_aborted_reply_is_recorded(tmp_path: Path) -> None:
    setup = Setup(tmp_path, says("half"))
    setup.worker.finish = {"type": "abort", "message": "Aborted"}
    reply = setup.send(text="hello", rid="aborted")
    assert reply["meta_info"]["finish_reason"]["type"] == "abort"
    assert setup.retrieve(rid="aborted").loss_mask[-4:] == [1, 1, 1, 1]


def test_reply_without_any_token_is_recorded(tmp_path: Path) -> None:
    middleware = RadixTreeMiddleware(tokenizer_path=saved(byte_level(), tmp_path))
    content = msgspec.json.encode(capture("abort_waiting_result"))
    asyncio.run(middleware(call_of({"input_ids": [50, 51]}), answering(content)))
    assert asyncio.run(retrieve(middleware, rid="waiting-1")).tokens == [50, 51]


@pytest.mark.parametrize(
    "change",
    [
        lambda reply: reply["meta_info"].pop("id"),
        lambda reply: reply["output_ids"].pop(),
        lambda reply: reply["meta_info"]["weight_versions"][0].update(end=99),
        lambda reply: reply["meta_info"].update(completion_tokens=99),
        lambda reply: reply["meta_info"].update(finish_reason=5),
        lambda reply: reply["meta_info"]["output_token_logprobs"].append("x"),
        lambda reply: reply.clear(),
    ],
)
def test_reply_that_contradicts_itself_reaches_the_client_and_not_the_tree(
    tmp_path: Path, change: Any
) -> None:
    setup = Setup(tmp_path, says("hello"))
    reply = setup.worker.answer({"input_ids": [7], "return_logprob": True, "rid": "r"})
    reply["meta_info"]["output_token_logprobs"][0][2] = "h"  # text within: every entry is looked at
    change(reply)
    content = msgspec.json.encode(reply)
    call = call_of({"input_ids": [7], "return_logprob": True})
    assert asyncio.run(setup.middleware(call, answering(content))).body == content
    assert setup.stat("trajectories") == 0
    assert setup.stat("record_failures_total") == 1


def test_reply_that_was_cut_short_reaches_the_client_as_it_is(tmp_path: Path) -> None:
    setup = Setup(tmp_path, says("hello"))
    content = msgspec.json.encode(setup.worker.answer({"input_ids": [7], "return_logprob": True, "rid": "r"}))
    for end in range(len(content)):
        reply = asyncio.run(setup.middleware(call_of({"input_ids": [7]}), answering(content[:end])))
        assert reply.body == content[:end]


def test_reply_to_a_prompt_that_was_cut_off_reaches_the_client_and_not_the_tree(tmp_path: Path) -> None:
    setup = Setup(tmp_path, says("hello"))
    answer = setup.worker.answer
    setup.worker.answer = lambda body: answer(body | {"input_ids": body["input_ids"][:5]})  # type: ignore[method-assign]
    reply = setup.send(input_ids=list(range(20, 44)), rid="r")
    assert (reply["text"], reply["meta_info"]["prompt_tokens"]) == ("hello", 5)
    assert setup.stat("record_failures_total") == 1
    assert setup.stat("cached_tokens") == 0


def test_every_captured_reply_to_a_prompt_by_ids_is_recorded() -> None:
    captured = captured_generations()
    assert {"put_generate", "abort_waiting_result", "v2_retract_0"} < set(captured)
    middleware = RadixTreeMiddleware()

    async def scenario() -> None:
        for body, reply in captured.values():
            await middleware(call_of({**body, "return_logprob": True}), answering(msgspec.json.encode(reply)))

    asyncio.run(scenario())
    assert middleware.stats()["radix_tree_record_failures_total"] == 0
    assert middleware.stats()["radix_tree_calls_recorded_total"] == len(captured)


def test_logprob_that_is_no_number_stays_absent(tmp_path: Path) -> None:
    setup = Setup(tmp_path, says("hello"))
    reply = setup.worker.answer({"input_ids": [7], "return_logprob": True, "rid": "r"})
    reply["meta_info"]["output_token_logprobs"][1][0] = None
    asyncio.run(setup.middleware(call_of({"input_ids": [7]}), answering(msgspec.json.encode(reply))))
    found = msgspec.to_builtins(
        msgspec.json.decode(msgspec.json.encode(setup.retrieve(rid="r", return_logp=True)))
    )
    assert [each is None for each in found["rollout_logp"]] == [False, False, True, False, False, False]


def test_long_reply_is_relayed_and_not_recorded(tmp_path: Path) -> None:
    middleware = RadixTreeMiddleware(tokenizer_path=saved(byte_level(), tmp_path), max_reply_bytes=10)
    body = Body([b"12345678", b"90123", b"45"])

    async def forward(call: Call) -> Reply:
        return Reply(status=200, headers=[], body=body)

    async def scenario() -> bytes:
        reply = await middleware(call_of({"input_ids": [1], "return_logprob": True}), forward)
        assert not body.is_closed
        return await reply.read()

    assert asyncio.run(scenario()) == b"123456789012345"
    assert body.is_closed
    assert middleware.stats()["radix_tree_record_failures_total"] == 1


def test_streamed_body_of_one_reply_is_read_recorded_and_closed(tmp_path: Path) -> None:
    setup = Setup(tmp_path, says("hello"))
    content = msgspec.json.encode(setup.worker.answer({"input_ids": [7], "return_logprob": True, "rid": "r"}))
    body = Body([content[:50], content[50:]])

    async def forward(call: Call) -> Reply:
        return Reply(status=200, headers=[], body=body)

    asyncio.run(setup.middleware(call_of({"input_ids": [7]}), forward))
    assert body.is_closed
    assert len(setup.retrieve(rid="r").tokens) == 6


def test_concurrent_siblings_tokenise_once_and_hold_their_prompt(tmp_path: Path) -> None:
    setup = Setup(tmp_path, lambda _: ids_of("x"), max_cached_tokens=1)
    gate = asyncio.Event()
    seen: list[Any] = []

    async def forward(call: Call) -> Reply:
        seen.append(call.json()["input_ids"])
        if len(seen) == 4:
            gate.set()
        await gate.wait()
        return await setup.worker(call)

    async def scenario() -> None:
        await asyncio.gather(*(setup.middleware(call_of({"text": "the quick"}), forward) for _ in range(4)))

    asyncio.run(scenario())
    assert seen == [ids_of("the quick")] * 4
    assert setup.stat("reused_tokens_total") == 3 * len(ids_of("the quick"))
    assert setup.stat("cached_tokens") == 0


@pytest.mark.parametrize("error", [asyncio.CancelledError, UpstreamError("gone"), RuntimeError("a bug")])
@pytest.mark.parametrize("is_begun", [False, True])
def test_call_that_ends_before_its_reply_lets_go_of_what_it_held(
    tmp_path: Path, error: Any, is_begun: bool
) -> None:
    setup = Setup(tmp_path, says("x"))
    body = Body([b'{"text":', error])

    async def forward(call: Call) -> Reply:
        assert setup.stat("cached_tokens") > 0
        if is_begun:
            return Reply(status=200, headers=[], body=body)
        raise error

    with pytest.raises(error if isinstance(error, type) else type(error)):
        asyncio.run(setup.middleware(call_of({"text": "the quick"}), forward))
    assert body.is_closed == is_begun
    assert setup.stat("cached_tokens") == 0


def test_registry_knows_it_by_name() -> None:
    assert middlewares.resolve("radix_tree") is RadixTreeMiddleware


@pytest.mark.parametrize("made", [byte_level, byte_fallback])
def test_any_text_without_a_reply_in_it_gets_exactly_the_tokenizers_ids(tmp_path: Path, made: Any) -> None:
    tokenizer = made()
    setup = Setup(tmp_path, lambda _: [40], tokenizer)

    @settings(max_examples=60, deadline=None)
    @given(st.text(st.sampled_from("ab 🙂é\u0301你\x00\n<|>"), min_size=1) | st.text(min_size=1))
    @example("<|im_start|>user\n<|im_end|>")
    @example("word" * 8000)
    @example("🙂" * 3000)
    def check(text: str) -> None:
        setup.send(text=text)
        assert setup.worker.sent[-1]["input_ids"] == tokenizer.encode(text).ids

    check()
