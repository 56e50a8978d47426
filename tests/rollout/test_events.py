import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espalier.rollout.events import MAX_EVENT_BYTES, EventSplitter, StreamedReply
from espalier.rollout.problems import BadReply
from tests.rollout.fake_router import Generation, reply_of

WORDS = ["One", " two", " three"]
TOKENS = [11, 12, 13]
WHOLE = reply_of("rid", [1, 2], TOKENS, Generation(WORDS))


def event(start: int, end: int, **changes: Any) -> bytes:
    meta = {
        **WHOLE["meta_info"],
        "output_token_logprobs": WHOLE["meta_info"]["output_token_logprobs"][start:end],
        "completion_tokens": end,
        "finish_reason": WHOLE["meta_info"]["finish_reason"] if end == len(TOKENS) else None,
        **changes,
    }
    return json.dumps({"text": "".join(WORDS[start:end]), "output_ids": [], "meta_info": meta}).encode()


def added(*events: bytes) -> StreamedReply:
    reply = StreamedReply()
    for each in events:
        reply.add(each)
    return reply


@pytest.mark.parametrize(
    "events",
    [
        [event(0, 1), event(0, 2), event(0, 3), b"[DONE]"],
        [event(0, 1), event(1, 2), event(2, 3), b"[DONE]"],
        [event(0, 3)],
    ],
)
def test_events_add_up_to_the_reply_whether_they_repeat_or_not(events: list[bytes]) -> None:
    reply = added(*events).whole()
    assert (reply.text, reply.output_ids) == ("One two three", TOKENS)
    assert reply.meta_info.output_token_logprobs is not None
    assert [list(entry) for entry in reply.meta_info.output_token_logprobs] == WHOLE["meta_info"][
        "output_token_logprobs"
    ]
    assert reply.meta_info.finish_reason is not None
    assert reply.meta_info.finish_reason.type == "stop"


def test_what_came_of_a_stream_that_broke_is_an_aborted_reply() -> None:
    reply = added(event(0, 1), event(1, 2)).cut_off("it broke")
    assert (reply.text, reply.output_ids) == ("One two", TOKENS[:2])
    assert reply.meta_info.finish_reason is not None
    assert reply.meta_info.finish_reason.type == "abort"


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([event(0, 1), event(2, 3)], "tells of 3 tokens, but 1 came before and 1 with this event"),
        ([event(0, 1, output_token_logprobs=None)], "no log-probabilities"),
        ([b'{"error": {"message": "out of memory"}}'], "no generation: out of memory"),
        ([b"{"], "no generation: {"),
        ([event(0, 2)], "ended after 2 tokens without saying why"),
        ([], "ended after 0 tokens"),
    ],
)
def test_a_malformed_stream_is_told(events: list[bytes], message: str) -> None:
    with pytest.raises(BadReply, match=message):
        added(*events).whole()


@given(cuts=st.lists(st.integers(0, 60), max_size=8))
def test_events_are_found_wherever_the_body_is_cut(cuts: list[int]) -> None:
    body = b'data: {"a": 1}\r\n\r\n: a comment\n\ndata:{"b": 2}\n\ndata: [DONE]\n\n'
    bounds = [0, *sorted(cuts), len(body)]
    splitter = EventSplitter()
    found = [data for a, b in itertools.pairwise(bounds) for data in splitter.feed(body[a:b])]
    assert found == [b'{"a": 1}', b'{"b": 2}', b"[DONE]"]


def test_an_event_without_end_is_refused() -> None:
    with pytest.raises(BadReply, match="longer than"):
        EventSplitter().feed(b"data: " + bytes(MAX_EVENT_BYTES))
