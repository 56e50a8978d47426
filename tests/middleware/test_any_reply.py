"""Whatever a worker answers: the client gets it, byte for byte where it asked for everything."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from espalier.calls import Call, JsonObject, Reply
from espalier.errors import BadRequest
from espalier.middleware import RadixTreeMiddleware
from tests.thoroughness import cases

from .driver import CAPTURES, Body, call_of, retrieve
from .tokenizers_made import byte_level, saved

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
)


def captured_replies() -> list[Any]:
    """Return every JSON reply that was captured of a `/generate` call, errors and batches included."""
    found = []
    for path in sorted(CAPTURES.glob("[!I]*.json")):
        document = msgspec.json.decode(path.read_bytes())
        request, response = document.get("request") or {}, document.get("response") or {}
        if request.get("path") == "/generate" and response.get("json") is not None:
            found.append(response["json"])
    return found


SEEDS = captured_replies()


def places(value: object) -> list[tuple[Any, Any]]:
    """Return every (container, key) inside `value`."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        each = waiting.pop()
        items = each.items() if isinstance(each, dict) else enumerate(each) if isinstance(each, list) else ()
        for key, inner in items:
            found.append((each, key))
            waiting.append(inner)
    return found


@st.composite
def odd_replies(draw: st.DrawFn) -> bytes:
    """Return a captured reply with some of its values replaced, removed or doubled, or cut short."""
    reply = msgspec.json.decode(msgspec.json.encode(draw(st.sampled_from(SEEDS))))
    for _ in range(draw(st.integers(0, 3))):
        known = places(reply)
        if not known:
            break
        container, key = known[draw(st.integers(0, len(known) - 1))]
        change = draw(st.sampled_from(["replace", "remove", "double"]))
        if change == "remove":
            del container[key]
        elif change == "double" and isinstance(container, list):
            container.insert(key, container[key])
        else:
            container[key] = draw(values)
    content = msgspec.json.encode(reply)
    return content[: draw(st.integers(0, len(content)))] if draw(st.integers(0, 9)) == 0 else content


any_content = odd_replies() | st.binary(max_size=60) | values.map(msgspec.json.encode)
bodies: st.SearchStrategy[JsonObject] = st.fixed_dictionaries(
    {},
    optional={
        "text": st.sampled_from(["hello", "<|im_start|>user\nhi"]) | values,
        "input_ids": st.sampled_from([[50], [50, 51], [50, 51, 52, 53]]) | values,
        "rid": st.text(max_size=4) | values,
        "session_id": st.text(max_size=4) | values,
        "stream": st.sampled_from([False, True]),
        "sampling_params": st.sampled_from([{}, {"n": 2}, {"no_stop_trim": True}, {"stop": "."}]) | values,
        "return_logprob": st.just(True),
    },
)


def answer(
    middleware: RadixTreeMiddleware, call: Call, content: bytes, kind: bytes, *, pieces: bool
) -> bytes:
    """Return what the client gets for a worker's reply `content`."""
    body = Body([content[:7], content[7:]])

    async def forward(_: Call) -> Reply:
        return Reply(status=200, headers=[(b"content-type", kind)], body=body if pieces else content)

    async def scenario() -> bytes:
        return await (await middleware(call, forward)).read()

    return asyncio.run(scenario())


def nothing_is_held(middleware: RadixTreeMiddleware) -> bool:
    """Say whether the call left no prompt behind that no trajectory needs."""
    return (
        middleware.stats()["radix_tree_trajectories"] > 0
        or middleware.stats()["radix_tree_cached_tokens"] == 0
    )


@pytest.fixture(name="made")
def _made(tmp_path: Path) -> Callable[[], RadixTreeMiddleware]:
    path = saved(byte_level(), tmp_path)
    return lambda: RadixTreeMiddleware(tokenizer_path=path, vocabulary_size=2**20)


@pytest.mark.parametrize("kind", [b"application/json", b"text/event-stream", b""])
def test_client_that_asked_for_everything_gets_every_byte(
    made: Callable[[], RadixTreeMiddleware], kind: bytes
) -> None:
    @cases(100)
    @given(any_content, st.booleans(), st.sampled_from([[50, 51], [50, 51, 52, 53], list(range(20, 40))]))
    def check(content: bytes, pieces: bool, ids: list[int]) -> None:
        middleware = made()
        call = call_of({"input_ids": ids, "return_logprob": True, "logprob_start_len": 0})
        assert answer(middleware, call, content, kind, pieces=pieces) == content
        assert nothing_is_held(middleware)

    check()


def test_client_that_asked_for_less_gets_a_reply_whatever_the_worker_says(
    made: Callable[[], RadixTreeMiddleware],
) -> None:
    @cases(100)
    @given(any_content, st.booleans())
    def check(content: bytes, pieces: bool) -> None:
        middleware = made()
        call = call_of({"text": "hello"})
        got = answer(middleware, call, content, b"application/json", pieces=pieces)
        assert nothing_is_held(middleware)
        try:
            said, told = msgspec.json.decode(content), msgspec.json.decode(got)
        except (msgspec.DecodeError, UnicodeDecodeError):
            assert got == content
            return
        if isinstance(said, dict) and isinstance(said.get("meta_info"), dict):
            meta = {key: value for key, value in said["meta_info"].items() if "logprobs" not in key}
            assert told == {**said, "meta_info": meta}
        else:
            assert got == content

    check()


def test_any_body_reaches_the_worker_or_is_refused_with_a_reason(
    made: Callable[[], RadixTreeMiddleware],
) -> None:
    @cases(150)
    @given(bodies, st.sampled_from(SEEDS))
    def check(body: JsonObject, said: Any) -> None:
        middleware = made()
        content = msgspec.json.encode(said)
        call, refusal = call_of({**body, "return_logprob": True}), ""
        try:
            got = answer(middleware, call, content, b"application/json", pieces=False)
        except BadRequest as error:
            got, refusal = content, str(error)
        assert not refusal or "must hold at least one" in refusal or "outside the vocabulary" in refusal
        assert got == content
        assert nothing_is_held(middleware)

    check()


def test_no_captured_reply_puts_a_token_into_the_tree_that_it_does_not_name(
    made: Callable[[], RadixTreeMiddleware],
) -> None:
    @cases(100)
    @given(odd_replies())
    def check(content: bytes) -> None:
        middleware = made()
        call = call_of({"input_ids": [50, 51], "return_logprob": True})
        answer(middleware, call, content, b"application/json", pieces=False)
        if middleware.stats()["radix_tree_calls_recorded_total"] == 0:
            return
        said = msgspec.json.decode(content)
        meta = said["meta_info"]
        found = asyncio.run(retrieve(middleware, rid=meta["id"], return_logp=True))
        entries = meta.get("output_token_logprobs")
        sampled = [each[1] for each in entries] if entries is not None else said["output_ids"]
        assert found.tokens == [50, 51, *sampled]
        assert found.loss_mask == [0, 0, *([1] * len(sampled))]
        told = msgspec.json.decode(msgspec.json.encode(found))["rollout_logp"]
        given_ = [each[0] for each in entries] if entries is not None else [None] * len(sampled)
        assert told == [0.0, 0.0, *given_]

    check()
