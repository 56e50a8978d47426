import asyncio
from pathlib import Path
from typing import Any

import pytest

from espalier.calls import Call, JsonObject, Reply
from espalier.errors import BadRequest, ConfigError
from espalier.middleware import RadixTreeMiddleware

from .driver import (
    Setup,
    answering,
    call_of,
    says,
)
from .tokenizers_made import byte_level, saved


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"text": "hi", "sampling_params": {"beam_width": 2}}, "beam_search"),
        ({"text": ["a", "b"], "image_data": [None, "data:"]}, "multimodal"),
        ({"text": "hi", "image_data": "data:"}, "multimodal"),
        ({"input_embeds": [[0.5]]}, "input_embeds"),
        ({"text": "hi", "session_params": {"id": "s"}}, "server_session"),
        ({"input_ids": [], "session_params": {"id": "s"}}, "server_session"),
        ({"text": "hi", "sampling_params": []}, "malformed"),
        ({"text": "hi", "sampling_params": {"n": 0}}, "malformed"),
        ({"text": "hi", "sampling_params": {"n": True}}, "malformed"),
        ({"text": ["a", "b"], "sampling_params": [{}]}, "malformed"),
        ({"text": ["a", "b"], "sampling_params": [{"n": 2}, {"n": 3}]}, "malformed"),
        ({"text": ["a", "b"], "return_logprob": [True]}, "malformed"),
        ({"text": ["a", "b"], "return_logprob": [True, "yes"]}, "malformed"),
        ({"text": ["a"], "return_logprob": [True], "sampling_params": {"n": 2}}, "malformed"),
        ({"text": "hi", "return_logprob": [True]}, "malformed"),
        ({"text": "a", "input_ids": [[1], [2]]}, "malformed"),
        ({"text": ["a"], "input_ids": [[1], [2]]}, "malformed"),
        ({"text": "hi", "return_logprob": "yes"}, "malformed"),
        ({"text": 5}, "malformed"),
        ({"input_ids": ["1"]}, "malformed"),
        ({}, "malformed"),
    ],
)
def test_what_is_not_recorded_passes_through_untouched_and_is_counted(
    tmp_path: Path, body: JsonObject, reason: str
) -> None:
    middleware = RadixTreeMiddleware(tokenizer_path=saved(byte_level(), tmp_path))
    call = call_of(body)
    seen: list[Call] = []
    reply = Reply(status=200, headers=[(b"x", b"y")], body=b"anything")

    async def forward(forwarded: Call) -> Reply:
        seen.append(forwarded)
        return reply

    assert asyncio.run(middleware(call, forward)) is reply
    assert seen == [call]
    assert seen[0] is call
    assert middleware.stats()[f"radix_tree_passed_through_{reason}_total"] == 1


def test_unparsable_body_and_other_paths_pass_through(tmp_path: Path) -> None:
    middleware = RadixTreeMiddleware(tokenizer_path=saved(byte_level(), tmp_path))
    broken = Call(method="POST", path="/generate", target=b"", headers=[], body=b"{", request_id="")
    chat = call_of({"messages": []}, path="/v1/chat/completions")
    for call in (broken, chat):
        reply = asyncio.run(middleware(call, answering(b"as it was")))
        assert reply.body == b"as it was"
    assert middleware.stats()["radix_tree_passed_through_malformed_total"] == 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"text": ""}, "The prompt is empty: `text`"),
        ({"text": ["a", ""]}, r"`text\[1\]`"),
        ({"text": []}, "The batch is empty"),
        ({"input_ids": []}, "The prompt is empty: `input_ids`"),
        ({"input_ids": [[1], []]}, r"`input_ids\[1\]`"),
        ({"input_ids": [50, 999_999]}, r"`input_ids\[1\]` is 999999.*from 0 to 412"),
        ({"input_ids": [50, -1]}, r"`input_ids\[1\]` is -1"),
        ({"input_ids": [10**12]}, "is 1000000000000"),
        ({"input_ids": [[1], [2, 500]]}, r"`input_ids\[1\]\[1\]` is 500"),
        ({"input_ids": [500], "stream": True}, "outside the vocabulary"),
    ],
)
def test_what_would_kill_a_worker_is_refused(tmp_path: Path, body: JsonObject, message: str) -> None:
    setup = Setup(tmp_path, says("x"))
    with pytest.raises(BadRequest, match=message):
        asyncio.run(setup.raw(body))
    assert setup.worker.calls == []


def test_put_is_checked_as_post_is(tmp_path: Path) -> None:
    setup = Setup(tmp_path, says("x"))
    with pytest.raises(BadRequest, match="999999"):
        asyncio.run(setup.raw({"input_ids": [999_999]}, method="PUT"))
    assert setup.worker.calls == []


def test_prompt_may_go_up_to_the_model_s_last_id(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"vocab_size": 512, "model_type": "qwen2"}')
    setup = Setup(tmp_path, says("x"))
    setup.send(input_ids=[511])
    with pytest.raises(BadRequest, match=r"is 512.*from 0 to 511"):
        setup.send(input_ids=[512])


def test_vocabulary_size_may_be_said(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"vocab_size": 512}')
    setup = Setup(tmp_path, says("x"), vocabulary_size="600")
    setup.send(input_ids=[599])
    with pytest.raises(BadRequest, match=r"is 600.*from 0 to 599 \(radix_tree\.vocabulary_size\)"):
        setup.send(input_ids=[600])


def test_vocabulary_size_holds_without_a_tokenizer_too() -> None:
    middleware = RadixTreeMiddleware(vocabulary_size=100)
    no_tokenizer = Reply(status=404, headers=[], body=b"")

    async def forward(call: Call) -> Reply:
        assert call.path != "/generate"
        return no_tokenizer

    with pytest.raises(BadRequest, match="is 100"):
        asyncio.run(middleware(call_of({"input_ids": [100]}), forward))


def test_id_without_a_name_may_be_sent_back_where_it_was_sampled(tmp_path: Path) -> None:
    nameless = 450
    setup = Setup(tmp_path, lambda _: [70, nameless])
    sampled = setup.send(input_ids=[50, 60])["output_ids"]
    setup.send(input_ids=[50, 60, *sampled, 80])
    asyncio.run(setup.raw({"input_ids": [[50, 60, *sampled], [1]]}))
    assert [50, 60, 70, nameless, 80] in [sent["input_ids"] for sent in setup.worker.sent]
    for ids, at in ([[50, 60, nameless], 2], [[50, 60, *sampled, nameless], 4]):
        with pytest.raises(BadRequest, match=rf"`input_ids\[{at}\]` is {nameless}"):
            setup.send(input_ids=ids)


def test_reply_that_is_not_200_passes_untouched(tmp_path: Path) -> None:
    middleware = RadixTreeMiddleware(tokenizer_path=saved(byte_level(), tmp_path))
    error = Reply(status=400, headers=[], body=b'{"error": {"message": "no"}}')

    async def forward(call: Call) -> Reply:
        return error

    assert asyncio.run(middleware(call_of({"text": "hi"}), forward)) is error
    assert middleware.stats()["radix_tree_trajectories"] == 0
    assert middleware.stats()["radix_tree_cached_tokens"] == 0


@pytest.mark.parametrize(
    "options",
    [
        {"max_cached_tokens": 0},
        {"max_cached_bytes": "many"},
        {"max_reply_bytes": True},
        {"vocabulary_size": 0},
        {"max_version_lag": -1},
        {"max_version_lag": True},
        {"session_ttl_s": 0},
        {"session_ttl_s": "long"},
    ],
)
def test_wrong_option_is_named(options: Any) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        RadixTreeMiddleware(**options)
