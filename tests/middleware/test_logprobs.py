import msgspec
import pytest

from espalier.middleware.logprobs import cut_logprobs
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
