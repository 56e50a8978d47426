"""Reads what the simulated model is told of tools, and what they answered.

A prompt whose beginning lists functions between `<tools>` and `</tools>`, one JSON object a line, as Qwen's
and this model's own chat template do, makes the model call the first of them: with the question for every
required text, and the smallest number for every required number. Once the last turn is what a tool answered,
the model says as its answer what stands before the first colon there: a passage's title.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .dice import Dice

MALFORMED_SHARE = 0.05
"""Share of the calls that are no JSON: real models slip, too."""

AGAIN_SHARE = 0.2
"""Share of the answers before which the model calls once more."""

_LIST = re.compile(r"<tools>\n(.*?)\n</tools>", re.DOTALL)
_TURN = re.compile(r"<\|im_start\|>user\n(.*?)(?:<\|im_end\|>|\Z)", re.DOTALL)
_RESPONSE = "<tool_response>\n"
_TITLE = re.compile(r"^(?:\[\d+\] )?([^:\n<]{1,80}):", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class ToolTurn:
    """A turn in which the model may call a tool, or answers from what one has said."""

    call: str
    """the tool call that it would write"""

    titles: tuple[str, ...]
    """what the tool has found, best first; empty where none has been called"""

    def words(self, dice: Dice, *, right: bool) -> str:
        """Return what the model says; if not `right`, it answers with another title or none."""
        if not self.titles or dice.happens(AGAIN_SHARE):
            call = self.call[: len(self.call) // 2] if dice.happens(MALFORMED_SHARE) else self.call
            return f"I will look it up.\n<tool_call>\n{call}\n</tool_call>"
        answer = self.titles[0] if right else dice.pick(self.titles[1:] or ("nobody knows",))
        return f"The answer is <answer>{answer}</answer>."


def read_tool_turn(beginning: str, end: str) -> ToolTurn | None:
    """Return what there is to do after a prompt, of which these are the two ends; None without tools."""
    listed = _LIST.search(beginning)
    turns = _TURN.findall(end)
    if listed is None or not turns:
        return None
    call = _first_call(listed[1].splitlines(), _question(_TURN.findall(beginning) or turns))
    if call is None:
        return None
    last = turns[-1]
    titles = _TITLE.findall(last.partition(_RESPONSE)[2]) if last.startswith(_RESPONSE) else []
    return ToolTurn(call, tuple(title for title in titles if title != "Error"))


def _question(turns: Sequence[str]) -> str:
    lines = [line.strip() for line in turns[0].splitlines() if line.strip()]
    asked = [line for line in lines if line.endswith("?")]
    return (asked or lines or [""])[-1]


def _first_call(lines: Sequence[str], question: str) -> str | None:
    try:
        function = json.loads(lines[0])["function"]
        schema = function["parameters"]
        arguments = {
            name: _value(schema["properties"][name], question) for name in schema.get("required", ())
        }
        return json.dumps({"name": function["name"], "arguments": arguments}, ensure_ascii=False)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None  # not a list of tools that this model can read


def _value(schema: Mapping[str, Any], question: str) -> object:
    if schema.get("enum"):
        return schema["enum"][0]
    match schema.get("type"):
        case "string":
            return question
        case "integer" | "number":
            return schema.get("minimum", 1)
        case "boolean":
            return True
    return None
