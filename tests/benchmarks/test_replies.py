"""What the static worker answers."""

import json

import pytest

from benchmarks.comparison.replies import END_OF_STREAM, stream_events, whole_reply
from espalier.sglang import decode_reply


@pytest.mark.parametrize("tokens", [16, 1024])
def test_whole_reply_has_a_log_probability_for_each_token(tokens: int) -> None:
    reply = decode_reply(whole_reply(tokens))
    assert reply.output_ids is not None
    assert len(reply.output_ids) == len(reply.meta_info.output_token_logprobs or ()) == tokens


@pytest.mark.parametrize(("tokens", "count"), [(16, 16), (1024, 64)])
def test_stream_tells_the_same_tokens_as_the_whole_reply(tokens: int, count: int) -> None:
    *events, end = stream_events(tokens)
    assert len(events) == count
    assert end == END_OF_STREAM
    told = [json.loads(event.removeprefix(b"data: ")) for event in events]
    whole = json.loads(whole_reply(tokens))
    assert [token for each in told for token in each["output_ids"]] == whole["output_ids"]
    assert told[-1]["meta_info"]["finish_reason"] == whole["meta_info"]["finish_reason"]
    assert all(each["meta_info"]["finish_reason"] is None for each in told[:-1])
