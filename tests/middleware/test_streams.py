"""Streams are relayed as they come, byte for byte, and recorded on the way."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.calls import Call, JsonObject, Reply
from espalier.errors import UpstreamError
from espalier.middleware import RadixTreeMiddleware
from espalier.middleware.trajectories import Trajectory

from .driver import Body, answering, call_of, captured_stream, ids_of, retrieve, streaming
from .tokenizers_made import byte_level, saved

WHOLE_STREAMS = [
    "abort_running_stream_result",
    "generate_stream_batch",
    "generate_stream_ids_logprob_top",
    "generate_stream_logprob",
    "generate_stream_n2",
    "upd_stream_across_version",
    "v2_stream_incremental",
    "v2_stream_incremental_n2",
    "v3_skiptok_generate_stream",
]
"""Captured streams that end as they should. Of two of them events are missing in the middle."""

DONE = b"data: [DONE]\n\n"
OUTPUT_LOGPROBS = ("input_token_logprobs", "output_token_logprobs", "output_token_logprobs_length")


def events_of(chunks: Sequence[bytes]) -> list[JsonObject]:
    lines = b"".join(chunks).split(b"\n")
    return [json.loads(line[6:]) for line in lines if line.startswith(b"data: {")]


def event(ids: Sequence[int], text: str, *, total: int | None = None, **changes: Any) -> bytes:
    """Return an event that tells of these tokens, as SGLang writes it."""
    meta: JsonObject = {
        "id": "r",
        "finish_reason": None,
        "prompt_tokens": 1,
        "weight_version": "v1",
        "input_token_logprobs": [],
        "output_token_logprobs": [[-each / 7, each, None] for each in ids],
        "output_token_logprobs_length": total or len(ids),
        "completion_tokens": len(ids) if total is None else total,
        "dp_rank": None,
    }
    meta |= changes
    body = {"text": text, "output_ids": list(ids), "meta_info": meta}
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


def last(ids: Sequence[int], text: str, **changes: Any) -> bytes:
    return event(ids, text, finish_reason={"type": "length", "length": 3}, **changes)


def without_logprobs(event: bytes) -> bytes:
    """Return an event as it is told to a client that did not ask for log-probabilities."""
    if event == DONE:
        return event
    told = json.loads(event[6:])
    for key in [key for key in told["meta_info"] if "logprobs" in key]:
        del told["meta_info"][key]
    return b"data: " + json.dumps(told, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n"


def pieces(content: bytes, size_bytes: int) -> list[bytes]:
    return [content[at : at + size_bytes] for at in range(0, len(content), size_bytes)]


def relayed(middleware: RadixTreeMiddleware, body: JsonObject, chunks: Sequence[Any]) -> list[bytes]:
    async def scenario() -> list[bytes]:
        reply = await middleware(call_of({**body, "stream": True}), streaming(chunks))
        assert not isinstance(reply.body, bytes)
        shown = [chunk async for chunk in reply.body]
        await reply.aclose()
        return shown

    return asyncio.run(scenario())


def found(middleware: RadixTreeMiddleware, rid: str = "r") -> Trajectory:
    return asyncio.run(retrieve(middleware, rid=rid, return_logp=True))


def stat(middleware: RadixTreeMiddleware, name: str) -> float:
    return middleware.stats()[f"radix_tree_{name}"]


def by_ids(body: JsonObject) -> JsonObject:
    """Return a captured body with a prompt by ids: as many as the worker made of the text."""
    return body if "input_ids" in body else {**body, "input_ids": [5, 6, 7, 8], "text": None}


@pytest.mark.parametrize("size_bytes", [1, 37, 1 << 20])
@pytest.mark.parametrize("name", WHOLE_STREAMS)
def test_client_that_asked_for_logprobs_gets_the_workers_bytes(name: str, size_bytes: int) -> None:
    body, events = captured_stream(name)
    chunks = pieces(b"".join(events), size_bytes)
    middleware = RadixTreeMiddleware()
    assert relayed(middleware, {**by_ids(body), "return_logprob": True}, chunks) == chunks
    assert stat(middleware, "record_failures_total") == 0


@pytest.mark.parametrize("size_bytes", [1, 37, 1 << 20, None])
@pytest.mark.parametrize("name", WHOLE_STREAMS)
def test_other_clients_get_what_the_worker_says_without_return_logprob(
    name: str, size_bytes: int | None
) -> None:
    body, events = captured_stream(name)
    chunks = events if size_bytes is None else pieces(b"".join(events), size_bytes)
    middleware = RadixTreeMiddleware()
    shown = relayed(middleware, {**by_ids(body), "return_logprob": False}, chunks)
    assert b"".join(shown) == b"".join(map(without_logprobs, events))
    if size_bytes is None:
        assert len(shown) == len(events)
    assert stat(middleware, "record_failures_total") == 0


@pytest.mark.parametrize("wants_logprobs", [False, True])
@pytest.mark.parametrize("name", WHOLE_STREAMS)
def test_what_a_stream_told_is_recorded(name: str, wants_logprobs: bool) -> None:
    body, events = captured_stream(name)
    body = by_ids(body)
    middleware = RadixTreeMiddleware()
    relayed(middleware, {**body, "return_logprob": wants_logprobs}, events)
    is_incremental = "incremental" in name
    told: dict[str, JsonObject] = {}
    for each in events_of(events):
        known = told.get(each["meta_info"]["id"])
        if known is not None and is_incremental:
            each["output_ids"] = known["output_ids"] + each["output_ids"]
            if "output_token_logprobs" in each["meta_info"]:
                logprobs = known["meta_info"]["output_token_logprobs"]
                each["meta_info"]["output_token_logprobs"][:0] = logprobs
        told[each["meta_info"]["id"]] = each
    assert stat(middleware, "generations_recorded_total") == len(told)
    assert stat(middleware, "calls_recorded_total") == 1
    prompts = body["input_ids"] if isinstance(body["input_ids"][0], list) else [body["input_ids"]]
    for rid, each in told.items():
        trajectory, sampled = found(middleware, rid), each["output_ids"]
        prompt = prompts[each["index"]] if len(prompts) > 1 else prompts[0]
        assert trajectory.tokens == [*prompt, *sampled]
        logprobs = each["meta_info"].get("output_token_logprobs")
        if logprobs is not None:
            assert isinstance(trajectory.rollout_logp, list)
            assert trajectory.rollout_logp[len(prompt) :] == [entry[0] for entry in logprobs]
        spans = [(span.version, span.start, span.end) for span in trajectory.weight_versions]
        assert spans == [
            (span["version"], len(prompt) + span["start"], len(prompt) + span["end"])
            for span in each["meta_info"]["weight_versions"]
        ]


@pytest.mark.parametrize("wants_logprobs", [False, True])
def test_each_event_is_handed_on_before_the_next_one_has_come(wants_logprobs: bool) -> None:
    arriving: asyncio.Queue[bytes | None] = asyncio.Queue()

    class Arriving(Body):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            while (chunk := await arriving.get()) is not None:
                yield chunk

    async def scenario() -> None:
        middleware = RadixTreeMiddleware()
        call = call_of({"input_ids": [1], "stream": True, "return_logprob": wants_logprobs})
        reply = await middleware(call, streaming(Arriving([])))
        assert not isinstance(reply.body, bytes)
        shown = aiter(reply.body)
        sent = [b": a comment\n\n", event([7], "a"), event([7, 8], "ab"), last([7, 8, 9], "abc"), DONE]
        async with asyncio.timeout(20):
            for chunk in sent:
                arriving.put_nowait(chunk)
                assert (await anext(shown)).startswith(chunk[:30])
                if chunk == sent[3]:
                    # Whoever sees the last event may ask for the trajectory at once.
                    assert (await retrieve(middleware, rid="r")).tokens == [1, 7, 8, 9]
            arriving.put_nowait(None)
            with pytest.raises(StopAsyncIteration):
                await anext(shown)

    asyncio.run(scenario())


def test_last_event_of_a_retracted_and_aborted_call_tells_all_again_in_an_incremental_stream() -> None:
    middleware = RadixTreeMiddleware()
    final = event(
        [7, 8, 9], "abc", finish_reason={"type": "abort", "message": "Abort in waiting queue"}
    ).replace(b'"output_ids":[7,8,9]', b'"output_ids":[9]')
    relayed(
        middleware,
        {"input_ids": [1]},
        [event([7], "a"), event([8], "b", total=2), event([9], "c", total=3), final, DONE],
    )
    assert found(middleware).tokens == [1, 7, 8, 9]
    assert found(middleware).rollout_logp == [0.0, -7 / 7, -8 / 7, -9 / 7]


def test_last_event_of_such_a_call_without_logprobs_tells_its_last_token_again() -> None:
    middleware = RadixTreeMiddleware()
    waiting = {"type": "abort", "message": "Abort in waiting queue"}
    events = [event([7], "a"), event([8], "b", total=2), event([8], "ab", total=2, finish_reason=waiting)]
    plain = [without_logprobs(each) for each in events]
    relayed(middleware, {"input_ids": [1], "return_logprob": True}, [*plain, DONE])
    assert found(middleware).tokens == [1, 7, 8]


def test_call_that_was_aborted_while_it_waited_has_no_tokens() -> None:
    middleware = RadixTreeMiddleware()
    waiting = {"type": "abort", "message": "Abort in waiting queue"}
    content = event([], "", finish_reason=waiting).replace(b'"prompt_tokens":1,', b"")
    relayed(middleware, {"input_ids": [1]}, [content, DONE])
    assert found(middleware).tokens == [1]


TELLING_ALL = [event([7], "a"), event([7, 8], "ab"), event([7, 8, 9], "abc"), event([7, 8, 9, 10], "abc")]
TELLING_NEWS = [event([7], "a"), event([8], "b", total=2), event([9], "c", total=3)]


@pytest.mark.parametrize("wants_logprobs", [False, True])
@pytest.mark.parametrize(
    ("chunks", "tokens"),
    [
        (TELLING_ALL, [1, 7, 8, 9, 10]),
        ([*TELLING_ALL[:3], TELLING_ALL[3][:50]], [1, 7, 8, 9]),
        (TELLING_ALL[:1], [1, 7]),
        (TELLING_NEWS, [1, 7, 8, 9]),
    ],
)
@pytest.mark.parametrize("end", [UpstreamError("gone"), asyncio.CancelledError, "closed", "ended"])
def test_stream_that_breaks_off_is_recorded_as_far_as_it_was_seen(
    chunks: list[bytes], tokens: list[int], end: Any, wants_logprobs: bool, tmp_path: Path
) -> None:
    middleware = RadixTreeMiddleware(tokenizer_path=saved(byte_level(), tmp_path))
    body = Body([*chunks, *([] if isinstance(end, str) else [end])])

    async def scenario() -> None:
        call = call_of({"input_ids": [1], "stream": True, "return_logprob": wants_logprobs})
        reply = await middleware(call, streaming(body))
        assert not isinstance(reply.body, bytes)
        try:
            shown = aiter(reply.body)
            for _ in range(len(chunks) if end == "closed" and chunks[-1].endswith(b"\n") else 99):
                await anext(shown)
        except (StopAsyncIteration, UpstreamError, asyncio.CancelledError):
            pass
        await reply.aclose()

    asyncio.run(scenario())
    assert body.is_closed
    assert found(middleware).tokens == tokens
    assert found(middleware).rollout_logp == [0.0, *(-each / 7 for each in tokens[1:])]
    assert [(span.version, span.start, span.end) for span in found(middleware).weight_versions] == [
        ("v1", 1, len(tokens))
    ]
    assert stat(middleware, "streams_broken_off_total") == 1


def test_prompt_that_goes_on_from_a_broken_stream_reuses_whole_tokens_of_what_was_seen(
    tmp_path: Path,
) -> None:
    """The text of an event can lag behind its tokens: half a character is told by the next one."""
    ids = [*ids_of("a"), *ids_of("b"), ids_of("🙂")[0]]
    middleware = RadixTreeMiddleware(tokenizer_path=saved(byte_level(), tmp_path))
    relayed(middleware, {"input_ids": ids_of("h"), "return_logprob": True}, [event(ids, "ab")])
    sent: list[list[int]] = []

    async def forward(call: Call) -> Reply:
        sent.append(call.json()["input_ids"])
        return Reply(status=500, headers=[], body=b"")

    asyncio.run(middleware(call_of({"text": "habc"}), forward))
    assert sent == [ids_of("h") + ids[:2] + ids_of("c")]


def test_versions_of_a_broken_stream_are_not_guessed_where_they_changed() -> None:
    middleware = RadixTreeMiddleware()
    events = [event([7], "a"), event([8], "b", total=2, weight_version="v2"), event([9], "c", total=3)]
    relayed(middleware, {"input_ids": [1]}, events)
    assert found(middleware).tokens == [1, 7, 8, 9]
    assert found(middleware).weight_versions == []


def test_stream_of_which_nothing_was_seen_leaves_nothing_behind() -> None:
    for chunks in ([], [b": ping\n\n"], [event([], "", prompt_tokens=3)]):
        middleware = RadixTreeMiddleware()
        relayed(middleware, {"input_ids": [1, 2, 3]}, chunks)
        assert stat(middleware, "trajectories") == stat(middleware, "cached_tokens") == 0


@pytest.mark.parametrize("is_read", [False, True])
def test_stream_lets_go_of_its_prompt_however_it_ends(is_read: bool) -> None:
    middleware = RadixTreeMiddleware()
    body = Body([event([], "")])

    async def scenario() -> None:
        reply = await middleware(call_of({"input_ids": [1, 2, 3], "stream": True}), streaming(body))
        assert stat(middleware, "cached_tokens") == 3
        if is_read:
            await reply.read()
        else:
            await reply.aclose()
        await reply.aclose()

    asyncio.run(scenario())
    assert body.is_closed
    assert stat(middleware, "cached_tokens") == 0


@pytest.mark.parametrize(
    "name", ["err_missing_input_stream", "err_too_long_ids_stream", "v2_bad_regex_stream"]
)
def test_refusal_that_comes_as_a_stream_is_handed_on_and_not_recorded(name: str) -> None:
    _, events = captured_stream(name)
    middleware = RadixTreeMiddleware()
    assert relayed(middleware, {"input_ids": [1]}, events) == events
    assert stat(middleware, "replies_refused_total") == 1
    assert stat(middleware, "trajectories") == 0
    assert stat(middleware, "record_failures_total") == 0


def test_events_that_tell_all_again_are_not_read_but_for_the_last() -> None:
    """Reading each would take time that grows with the square of the length."""
    nonsense = event([7, 8, 9], "abc").replace(b"[[", b"{{")
    middleware = RadixTreeMiddleware()
    chunks = [event([7], "a"), event([7, 8], "ab"), *([nonsense] * 3), last([7, 8, 9, 10], "abcd"), DONE]
    assert relayed(middleware, {"input_ids": [1], "return_logprob": True}, chunks) == chunks
    assert found(middleware).tokens == [1, 7, 8, 9, 10]
    assert stat(middleware, "record_failures_total") == 0


@pytest.mark.parametrize("line", [b"data: {}\r\rdata: {}", b"data: {" + b"x" * 9000])
def test_what_has_no_end_of_line_is_not_kept_back_for_ever(line: bytes) -> None:
    middleware = RadixTreeMiddleware(max_reply_bytes=8000)
    assert relayed(middleware, {"input_ids": [1]}, [line, b"data"]) == [line, b"data"]
    assert stat(middleware, "record_failures_total") == 1


def test_generation_that_is_told_bit_by_bit_and_never_ends_is_not_kept_for_ever() -> None:
    middleware = RadixTreeMiddleware(max_reply_bytes=2000)
    events = [event([7], "a" * 100, total=total) for total in range(1, 20)]
    shown = relayed(middleware, {"input_ids": [1], "return_logprob": True}, [*events, DONE])
    assert shown == [*events, DONE]
    assert stat(middleware, "record_failures_total") == 1
    assert stat(middleware, "trajectories") == 0


SOME_LINES = [
    *(event([7], "a"), event([7, 8], "ab"), event([8], "b", total=2), last([7, 8, 9], "abc"), DONE),
    *(b"data: {\n", b'data: {"error":1}\n', b": ping\n\n", b"\n", b"data: \xff\r\n", b'{"meta_info":{}}\n'),
    event([7], "a").replace(b":", b": "),
]


@settings(deadline=None)
@given(st.lists(st.sampled_from(SOME_LINES)), st.lists(st.integers(1, 60)), st.booleans())
def test_what_a_client_gets_does_not_depend_on_where_the_stream_is_cut(
    lines: list[bytes], sizes: list[int], wants_logprobs: bool
) -> None:
    rest, chunks = b"".join(lines), []
    for size in sizes:
        chunks.append(rest[:size])
        rest = rest[size:]
    body = {"input_ids": [1], "return_logprob": wants_logprobs}
    whole, cut = RadixTreeMiddleware(), RadixTreeMiddleware()
    shown = b"".join(relayed(whole, body, [b"".join(lines)]))
    assert b"".join(relayed(cut, body, [*chunks, rest])) == shown
    assert whole.stats() == cut.stats()
    assert shown == b"".join(lines) if wants_logprobs else b'"output_token_logprobs"' not in shown


def of_two(index: object) -> bytes:
    return last([7], "a").replace(b"}}\n\n", b'},"index":%s}\n\n' % json.dumps(index).encode())


@pytest.mark.parametrize("wants_logprobs", [False, True])
@pytest.mark.parametrize(
    ("body", "chunks"),
    [
        ({}, [b"data: 5\n\n", b"data:\n\n", b"what is this\n\n", b"\n", b"\x00\xff\n"]),
        ({}, [b"data: {\n\n", b'data: {"meta_info":{\n\n', b'data: {"meta_info":7}\n\n']),
        ({}, [b'data: {"text":"\xff","meta_info":{}}\n\n', DONE]),
        ({}, [b'data: {"meta_info":{"a":' + b"[" * 3000 + b"]" * 3000 + b"}}\n\n", DONE]),
        ({}, [b'data: {"later":{"output_ids":[1]}}\n\n', DONE]),
        ({}, [b'data: {"meta_info":{"id":5}}\n\n', DONE]),
        ({}, [event([8], "b", total=2).replace(b"logprobs", b"longprobs"), DONE]),
        ({}, [last([7], "a", prompt_tokens=5).replace(b"logprobs", b"longprobs"), DONE]),
        ({}, [b"data: {}\r\rdata: {}", b"\r\r"]),
        ({}, [b"data: " + b"x" * 5000, b"y" * 5000, b"\n\n"]),
        ({}, [b'data: {"text":"never ends']),
        ({"input_ids": [[1], [2]]}, [b"data: [1, 2]\n\n", DONE]),
        ({"sampling_params": {"n": 2}}, [b'data: {"index":0}\n\n', DONE]),
    ],
)
def test_shape_that_nobody_expects_reaches_the_client_as_it_is(
    body: JsonObject, chunks: list[bytes], wants_logprobs: bool
) -> None:
    middleware = RadixTreeMiddleware(max_reply_bytes=8000)
    asked = {"input_ids": [1], "return_logprob": wants_logprobs, **body}
    assert b"".join(relayed(middleware, asked, chunks)) == b"".join(chunks)
    assert stat(middleware, "trajectories") == 0


@pytest.mark.parametrize("index", [2, -1, 10**12, "0", None])
def test_event_of_a_generation_that_was_not_asked_for_ends_the_recording_and_not_the_stream(
    index: object,
) -> None:
    middleware = RadixTreeMiddleware()
    chunks = [of_two(0), of_two(index), of_two(1), DONE]
    body = {"input_ids": [[1], [2]], "return_logprob": True}
    assert relayed(middleware, body, chunks) == chunks
    assert stat(middleware, "generations_recorded_total") == 1
    assert stat(middleware, "record_failures_total") == 1


def test_one_generation_that_cannot_be_recorded_leaves_the_others_alone() -> None:
    middleware = RadixTreeMiddleware()
    wrong = of_two(0).replace(b'"completion_tokens":1', b'"completion_tokens":9')
    relayed(middleware, {"input_ids": [[1], [2]]}, [wrong, of_two(1), of_two(0), DONE])
    assert found(middleware).tokens == [2, 7]
    assert stat(middleware, "record_failures_total") == 1
    assert stat(middleware, "generations_recorded_total") == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda event: event.replace(b":", b": ").replace(b"data: ", b"data:", 1),
        lambda event: event.replace(b"\n", b"\r\n"),
        lambda event: event.replace(b":", b": ").replace(b"\n", b"\r\n"),
        lambda event: event.replace(b'"dp_rank"', b'"output_top_logprobs":[],"dp_rank"'),
        lambda event: event.replace(b",null]", b',"\\"],"]'),
    ],
)
def test_other_spellings_of_the_same_are_read_and_cleared_too(change: Callable[[bytes], bytes]) -> None:
    middleware = RadixTreeMiddleware()
    sent = [change(each) for each in (event([7], "a"), event([7, 8], "ab"), last([7, 8, 9], "abc"))]
    shown = b"".join(relayed(middleware, {"input_ids": [1]}, sent))
    assert b"logprobs" not in shown
    assert shown.count(b"dp_rank") == shown.count(b"finish_reason") == 3
    assert shown.count(b"\r\n") == b"".join(sent).count(b"\r\n")
    assert found(middleware).tokens == [1, 7, 8, 9]


def test_length_of_the_workers_stream_is_not_told_where_the_clients_is_shorter() -> None:
    content = last([7], "a")

    async def forward(call: Call) -> Reply:
        kind = (b"content-type", b"text/event-stream")
        return Reply(
            status=200, headers=[kind, (b"content-length", b"%d" % len(content))], body=Body([content])
        )

    reply = asyncio.run(RadixTreeMiddleware()(call_of({"input_ids": [1], "stream": True}), forward))
    assert reply.header(b"content-length") is None


def test_short_stream_that_came_whole_is_recorded_too() -> None:
    async def forward(call: Call) -> Reply:
        content = last([7], "a") + DONE
        return Reply(status=200, headers=[(b"content-type", b"text/event-stream")], body=content)

    middleware = RadixTreeMiddleware()
    reply = asyncio.run(middleware(call_of({"input_ids": [1], "stream": True}), forward))
    assert isinstance(reply.body, bytes)
    assert b"logprobs" not in reply.body
    assert found(middleware).tokens == [1, 7]


@pytest.mark.parametrize(
    "headers", [[(b"content-type", b"text/event-stream"), (b"content-encoding", b"gzip")], []]
)
def test_stream_that_cannot_be_read_is_relayed_and_counted(headers: list[tuple[bytes, bytes]]) -> None:
    async def forward(call: Call) -> Reply:
        return Reply(status=200, headers=headers, body=Body([b"\x1f\x8b", b"\x08"]))

    async def scenario(middleware: RadixTreeMiddleware) -> bytes:
        return await (await middleware(call_of({"input_ids": [1], "stream": True}), forward)).read()

    middleware = RadixTreeMiddleware()
    assert asyncio.run(scenario(middleware)) == b"\x1f\x8b\x08"
    assert stat(middleware, "record_failures_total") == 1


def test_json_reply_to_a_call_that_asked_for_a_stream_is_recorded() -> None:
    content = last([7], "a")[6:-2]
    middleware = RadixTreeMiddleware()
    asyncio.run(middleware(call_of({"input_ids": [1], "stream": True}), answering(content)))
    assert found(middleware).tokens == [1, 7]


def test_beginning_of_a_stop_string_that_was_streamed_is_not_spelled_twice(tmp_path: Path) -> None:
    stop = {"type": "stop", "matched": "STOP"}
    ids = [*ids_of("a"), *ids_of("S"), *ids_of("T"), *ids_of("O"), *ids_of("P")]
    middleware = RadixTreeMiddleware(tokenizer_path=saved(byte_level(), tmp_path))
    body = {"input_ids": ids_of("h"), "sampling_params": {"stop": "STOP"}}
    relayed(middleware, body, [event(ids, "aST", finish_reason=stop), DONE])
    trajectory = asyncio.run(retrieve(middleware, text="haSTOP"))
    assert trajectory.tokens == ids_of("h") + ids
    assert trajectory.matched_tokens == len(trajectory.tokens)


def test_streams_may_be_recorded_without_logprobs_that_nobody_asked_for() -> None:
    middleware = RadixTreeMiddleware(stream_logprobs="false")  # type: ignore[arg-type]
    seen: list[Call] = []
    plain = last([7], "a").replace(b'"output_token_logprobs":[[-1.0,7,null]],', b"")
    without = plain.replace(b'"input_token_logprobs":[],', b"")

    async def forward(call: Call) -> Reply:
        if call.path == "/generate":
            seen.append(call)
        return await streaming([without, DONE])(call)

    async def scenario() -> None:
        call = call_of({"input_ids": [1], "stream": True, "logprob_start_len": 0})
        reply = await middleware(call, forward)
        assert await reply.read() == without + DONE
        assert seen == [call]

    asyncio.run(scenario())
    assert found(middleware).tokens == [1, 7]
    assert str(found(middleware).rollout_logp) == "[0.0, nan]"
