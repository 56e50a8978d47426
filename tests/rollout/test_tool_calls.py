"""What is read as a tool call, and what a model is told that got one wrong."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espalier.errors import PluginError
from espalier.rollout.tool_calls import MAX_CALLS, BadCall, ToolCall, openai_calls, qwen_calls, tool_parsers

PIECES = st.sampled_from(
    [
        *(
            "<tool_call>",
            "</tool_call>",
            "</think>",
            '{"tool_calls": [',
            '{"function": ',
            '"name": "f"',
            "[" * 2000,
        ),
        *(
            '{"name": "f", "arguments": ',
            "{}",
            "}",
            "]}",
            "null",
            "NaN",
            '"{}"',
            "9" * 5000,
            "\ud800",
            "\\ud800",
        ),
    ]
)


def wrapped(body: str) -> str:
    return f"<tool_call>\n{body}\n</tool_call>"


def test_qwen_calls_are_read_in_order_from_between_the_words() -> None:
    text = (
        "I look twice. "
        + wrapped('{"name": "search", "arguments": {"query": "Lyon", "k": 2}}')
        + " and "
        + wrapped('{"name": "now"}')
        + "<|im_end|>"
    )
    assert qwen_calls(text) == [
        ToolCall(name="search", arguments={"query": "Lyon", "k": 2}),
        ToolCall(name="now", arguments={}),
    ]


def test_a_call_that_is_only_thought_about_is_none() -> None:
    thought = "<think>" + wrapped('{"name": "search"}') + "</think>"
    assert qwen_calls(thought + "It is Lyon.") == []
    assert qwen_calls(thought + wrapped('{"name": "now"}')) == [ToolCall(name="now", arguments={})]
    assert openai_calls('<think>{"tool_calls": [1]}</think>It is Lyon.') == []


def test_what_ends_a_thought_may_be_in_an_argument() -> None:
    call = wrapped('{"name": "search", "arguments": {"query": "what is </think>?"}}')
    told = [ToolCall(name="search", arguments={"query": "what is </think>?"})]
    assert qwen_calls(call) == told
    assert qwen_calls("<think>Hm.</think>" + call) == told


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ('{"name": "f", "arguments": {', "not valid JSON"),
        ('{"name": "f", "arguments": NaN}', "NaN is no JSON"),
        ("[1]", "must be a JSON object"),
        ('{"arguments": {}}', 'no "name"'),
        ('{"name": 3}', 'no "name"'),
        ('{"name": "f", "arguments": [1]}', "arguments of f must be a JSON object"),
        ('{"name": "f", "arguments": "{"}', "arguments of f are not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_a_bad_call_tells_why_and_spoils_no_other(body: str, reason: str) -> None:
    bad, good = qwen_calls(wrapped(body) + wrapped('{"name": "f", "arguments": "{\\"a\\": 1}"}'))
    assert isinstance(bad, BadCall)
    assert reason in bad.reason
    assert good == ToolCall(name="f", arguments={"a": 1})


def test_a_call_without_its_end_is_told() -> None:
    [bad] = qwen_calls('<tool_call>{"name": "f"}')
    assert isinstance(bad, BadCall)
    assert "</tool_call>" in bad.reason


def test_a_model_in_a_loop_is_read_only_so_far() -> None:
    assert len(qwen_calls(wrapped('{"name": "f"}') * 1000)) == MAX_CALLS
    assert len(openai_calls(json.dumps({"tool_calls": [{"function": {"name": "f"}}] * 1000}))) == MAX_CALLS


def test_openai_calls_have_ids_and_arguments_as_json_text() -> None:
    calls = [
        {
            "id": "call_1",
            "type": "function",
            "function": {"name": "search", "arguments": '{"query": "Lyon"}'},
        },
        {"id": 7, "type": "function", "function": {"name": "now", "arguments": {}}},
        {"id": "call_3", "type": "function"},
    ]
    text = f"Let {{me}} see. {json.dumps({'content': {'parts': {}}, 'tool_calls': calls})}<|im_end|>"
    first, second, third = openai_calls(text)
    assert first == ToolCall(name="search", arguments={"query": "Lyon"}, id="call_1")
    assert second == ToolCall(name="now", arguments={})
    assert isinstance(third, BadCall)
    assert '"function"' in third.reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"tool_calls": [', "not valid JSON"),
        ('{"tool_calls": 3}', "must be a list"),
        ('{"tool_calls": [3]}', "an object"),
    ],
)
def test_openai_calls_that_cannot_be_read_tell_why(text: str, reason: str) -> None:
    [bad] = openai_calls(text)
    assert isinstance(bad, BadCall)
    assert reason in bad.reason


def test_words_alone_are_no_call() -> None:
    for parse in (qwen_calls, openai_calls):
        assert parse("The answer is Lyon.") == []
    assert openai_calls('{"tool_calls": null}') == []
    assert openai_calls('the key "tool_calls" is missing') == []


@given(st.one_of(st.text(), st.lists(PIECES, max_size=12).map("".join)))
def test_no_text_raises(text: str) -> None:
    for parse in (qwen_calls, openai_calls):
        for call in parse(text):
            assert isinstance(call, ToolCall | BadCall)


def test_parsers_are_chosen_by_name() -> None:
    assert tool_parsers.resolve("hermes") is tool_parsers.resolve("qwen") is qwen_calls
    assert tool_parsers.resolve("openai") is openai_calls
    with pytest.raises(PluginError, match="known are hermes, openai, qwen"):
        tool_parsers.resolve("smoke")
