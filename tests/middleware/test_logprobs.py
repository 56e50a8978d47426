from array import array

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from espalier.middleware.logprobs import cut_logprobs, extend_logprobs, pack_logprobs
from espalier.sglang import decode_reply

from .driver import capture

REPLIES = [
    "generate_text_logprob",
    "upd_while_running_inflight",
    "generate_stop_eos_biased",
    "abort_running_result",
]


@pytest.mark.parametrize("name", REPLIES)
def test_cut_gives_what_decoding_gives(name: str) -> None:
    content = msgspec.json.encode(capture(name))
    cut = cut_logprobs(content)
    assert cut is not None
    triples = decode_reply(content).meta_info.output_token_logprobs
    assert list(zip(cut.logprobs, cut.tokens, strict=True)) == [each[:2] for each in triples or ()]
    emptied = capture(name)
    emptied["meta_info"]["output_token_logprobs"] = []
    assert cut.rest == msgspec.json.encode(emptied)


def test_name_inside_a_text_is_not_the_section() -> None:
    reply = capture("generate_text_logprob")
    reply["text"] = ',"output_token_logprobs":[[-1.0,5,null]],"'
    cut = cut_logprobs(msgspec.json.encode(reply))
    assert cut is not None
    assert cut.tokens.tolist() == reply["output_ids"]


@pytest.mark.parametrize(
    "section",
    [
        b'"output_token_logprobs":[]',
        b'"output_token_logprobs":null',
        b'"output_token_logprobs": [[-1.0,5,null]]',
        b'"output_token_logprobs":[[-1.0,5,"text"]]',
        b'"output_token_logprobs":[[-1.0,5],[-2.0,6,null,7]]',
        b'"output_token_logprobs":[[-1.0,5,null],[-2.0,6]]',
        b'"output_token_logprobs":[[-1.0,5.5,null]]',
        b'"output_token_logprobs":[[-1.0,null,5]]',
        b'"output_token_logprobs":[[-1.0,99999999999,null]]',
        b'"output_token_logprobs":[[-1.0,5,null]],"x":0,"output_token_logprobs":[]',
        b'"x\\"output_token_logprobs":[[-1.0,5,null]]',
    ],
)
def test_what_is_not_plain_to_see_is_left_to_the_decoder(section: bytes) -> None:
    assert cut_logprobs(b'{"meta_info":{"id":"r",%b,"completion_tokens":1}}' % section) is None


@given(st.lists(st.floats(allow_nan=False) | st.floats(allow_nan=False, width=32)))
def test_every_log_probability_is_kept_as_it_was_told(logprobs: list[float | None]) -> None:
    assert pack_logprobs(logprobs).tolist() == logprobs


@given(st.lists(st.floats(allow_nan=False, width=32)))
def test_numbers_of_single_precision_take_four_bytes(logprobs: list[float | None]) -> None:
    assert pack_logprobs(logprobs).itemsize == 4


def test_log_probabilities_of_two_precisions_are_joined_in_the_greater() -> None:
    single, double = pack_logprobs([-0.5]), pack_logprobs([-0.1])
    assert extend_logprobs(array("f", single), double).tolist() == [-0.5, -0.1]
    assert extend_logprobs(array("d", double), single).tolist() == [-0.1, -0.5]
    assert extend_logprobs(array("f", single), single) == array("f", [-0.5, -0.5])
