"""The simulated model calls a tool that it is told of, and answers from what that found."""

import json
import re
from typing import Any

import pytest

from espalier.simulator.dice import Dice
from espalier.simulator.tool_use import read_tool_turn
from tests.simulator.test_voice import TOKENIZER, answers, voice

SEARCH = {
    "type": "function",
    "function": {
        "name": "search",
        "parameters": {
            "type": "object",
            "properties": {
                "query": {"type": "string"},
                "k": {"type": "integer", "minimum": 2},
                "page": {"type": "integer", "default": 0},
            },
            "required": ["query", "k"],
        },
    },
}
QUESTION = "<|im_start|>user\nUse the tool.\nWhose symbol is Fe?<|im_end|>\n"
FOUND = "<|im_start|>user\n<tool_response>\n[1] Iron: a: b\n[2] Zinc: c\n</tool_response><|im_end|>\n"


def prompt(*turns: str, tools: Any = SEARCH) -> str:
    listed = tools if isinstance(tools, str) else json.dumps(tools)
    return (
        f"<|im_start|>system\n<tools>\n{listed}\n</tools><|im_end|>\n{''.join(turns)}<|im_start|>assistant\n"
    )


def test_a_prompt_with_tools_is_answered_by_a_call_of_the_first_one() -> None:
    said = [TOKENIZER.decode(ids) for ids in answers(voice(), prompt(QUESTION), 40)]
    calls = [re.search(r"<tool_call>\n(.*)\n</tool_call>", text) for text in said]
    assert all(calls)
    whole = [call[1] for call in calls if call is not None and call[1].endswith("}}")]
    assert 30 <= len(whole) < 40
    assert json.loads(whole[0]) == {"name": "search", "arguments": {"query": "Whose symbol is Fe?", "k": 2}}


@pytest.mark.parametrize(("accuracy", "title"), [(1.0, "Iron"), (0.0, "Zinc")])
def test_what_a_tool_found_is_the_answer(accuracy: float, title: str) -> None:
    said = [TOKENIZER.decode(ids) for ids in answers(voice(accuracy), prompt(QUESTION, FOUND), 40)]
    named = [match[1] for text in said if (match := re.search(r"<answer>(.*)</answer>", text))]
    assert set(named) == {title}
    assert 20 < len(named) < 40  # the others call once more


def test_after_an_error_it_calls_again() -> None:
    error = "<|im_start|>user\n<tool_response>\nError: search failed: no\n</tool_response><|im_end|>\n"
    turn = read_tool_turn(prompt(QUESTION), prompt(QUESTION, error))
    assert turn is not None
    assert turn.titles == ()
    assert "<tool_call>" in turn.words(Dice(1), right=True)


@pytest.mark.parametrize(
    "tools",
    ["", "[", '"text"', "{}", '{"function": {"name": "f", "parameters": {"required": ["a"]}}}', "[" * 3000],
)
def test_tools_that_cannot_be_read_are_none(tools: str) -> None:
    assert read_tool_turn(prompt(QUESTION, tools=tools), prompt(QUESTION, tools=tools)) is None


def test_without_tools_there_is_no_tool_turn() -> None:
    assert read_tool_turn(QUESTION, QUESTION) is None
