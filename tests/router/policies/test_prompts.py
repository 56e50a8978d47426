import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from espalier.calls import Call
from espalier.router.policies.prompts import MAX_PROMPT_BYTES, prompt_of
from tests.router.policies.spots import call, generate

IDS = st.lists(st.integers(0, 300_000), min_size=1, max_size=8)


def known(asked: Call) -> bytes:
    prompt = prompt_of(asked)
    assert prompt is not None
    return prompt


@given(IDS, IDS)
def test_ids_continue_each_other_exactly_when_their_bytes_do(shorter: list[int], longer: list[int]) -> None:
    continues = longer[: len(shorter)] == shorter
    assert known(generate(longer)).startswith(known(generate(shorter))) is continues
    assert known(generate(shorter + longer)).startswith(known(generate(shorter)))


@given(st.text(min_size=1), st.text(min_size=1))
def test_texts_continue_each_other_exactly_when_their_bytes_do(shorter: str, longer: str) -> None:
    continues = longer.startswith(shorter)
    assert known(generate(longer)).startswith(known(generate(shorter))) is continues
    assert known(generate(shorter + longer)).startswith(known(generate(shorter)))


@given(st.text(min_size=1))
def test_text_is_read_to_its_end_whatever_it_holds(text: str) -> None:
    assert msgspec.json.decode(known(generate(text)) + b'"') == text


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def chat(*messages: dict[str, str], path: str = "/v1/chat/completions") -> Call:
    body = {"model": "m", "tools": [{"parameters": {"text": "x"}}], "messages": messages, "temperature": 1}
    return call(msgspec.json.encode(body), path=path)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_conversation_continues_another_by_whole_messages(path: str) -> None:
    asked, said = message("user", 'a "quoted" ] question'), message("assistant", "an answer")
    first = known(chat(asked, path=path))
    assert known(chat(asked, said, message("user", "more"), path=path)).startswith(first)
    assert not known(chat(message("user", 'a "quoted" ] question?'), path=path)).startswith(first)


@pytest.mark.parametrize(
    ("body", "prompt"),
    [
        (b'{"text":"a"}', b'"a'),
        (b'{ "sampling_params" : {"stop": ["]"]} , "text" : "a b" }', b'"a b'),
        (b'{"text": "a\\"b\\\\"}', b'"a\\"b\\\\'),
        (b'{"text": ["first", "second"]}', b'"first'),
        (b'{"input_ids": [1, 2]}', b"1, 2,"),
        (b'{"input_ids": [[1, 2], [3]]}', b"1, 2,"),
        (b'{"prompt": "a"}', b'"a'),
        (b'{"prompt": {"text": "nested"}}', b'"nested'),
    ],
)
def test_prompt_is_taken_as_the_client_wrote_it(body: bytes, prompt: bytes) -> None:
    assert known(call(body, path="/v1/completions")) == prompt


BROKEN = [
    b"",
    b"{}",
    b"[]",
    b"\xff\xfe\x00",
    b'{"text"',
    b'{"text":',
    b'{"text": 5, "stop": ["x"]}',
    b'{"text": ""}',
    b'{"text": "never ends',
    b'{"text": "ends in a backslash\\"',
    b'{"text": []}',
    b'{"input_ids": []}',
    b'{"input_ids": [[]]}',
    b'{"input_ids": [1, 2',
    b'{"input_ids": "',
    b'{"messages": []}',
    b'{"messages": "x"}',
    b'{"messages": [',
    b"[" * 100_000,
]


@pytest.mark.parametrize(
    ("body", "path"), list(itertools.product(BROKEN, ["/generate", "/v1/chat/completions"]))
)
def test_body_without_a_prompt_has_none(body: bytes, path: str) -> None:
    assert prompt_of(call(body, path=path)) is None


@given(st.binary())
def test_no_body_whatsoever_makes_trouble(body: bytes) -> None:
    for path in ("/generate", "/v1/chat/completions"):
        prompt_of(call(body, path=path))
        prompt_of(call(b'{"text": "' + body, path=path))


@pytest.mark.parametrize("prompt", ["x" * (MAX_PROMPT_BYTES + 1), [1] * (MAX_PROMPT_BYTES // 2 + 1)])
def test_only_so_much_of_a_prompt_is_looked_at(prompt: str | list[int]) -> None:
    assert MAX_PROMPT_BYTES <= len(known(generate(prompt))) <= MAX_PROMPT_BYTES + 1
