"""Tool calls in what a model said, as it was trained to write them.

Parsers are pure functions from a text to calls. A model writes what it likes: whatever cannot be read as a
call is told as a `BadCall` with the reason, which the model gets to read, and no text raises.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, NoReturn, TypeAlias

from ..registry import Registry

MAX_CALLS: Final = 64
"""Calls that are read of one text; a model that writes more is stuck in a loop."""

_BEGIN: Final = "<tool_call>"
_END: Final = "</tool_call>"
_THOUGHT_END: Final = "</think>"
_OPENAI_KEY: Final = '"tool_calls"'
_MAX_BRACES: Final = 16
"""Braces at which an object with tool calls is looked for: each may cost a reading of the whole text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call that the model wrote."""

    name: str
    arguments: dict[str, Any]
    id: str | None = None
    """what the model calls it, where the format has such a name"""


@dataclass(frozen=True, slots=True, kw_only=True)
class BadCall:
    """What the model meant as a call and nobody can make."""

    reason: str
    """in words that the model can act on"""


ToolParser: TypeAlias = Callable[[str], list[ToolCall | BadCall]]
"""`f(text)`: the calls of one turn, in order; none where the model only speaks."""


def _parser(text: str) -> object: ...


tool_parsers: Registry[ToolParser] = Registry("tool parser", expects=_parser)
"""Ways of writing tool calls."""


@tool_parsers.register("hermes")
@tool_parsers.register("qwen")
def qwen_calls(text: str) -> list[ToolCall | BadCall]:
    """Read `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, any number of them, after the thinking."""
    calls: list[ToolCall | BadCall] = []
    rest = _spoken(text)
    while len(calls) < MAX_CALLS:
        _, begins, rest = rest.partition(_BEGIN)
        if not begins:
            break
        body, ends, after = rest.partition(_END)
        calls.append(_read_call(body) if ends else BadCall(reason=f"the call has no {_END} at its end"))
        rest = after
    return calls


@tool_parsers.register("openai")
def openai_calls(text: str) -> list[ToolCall | BadCall]:
    """Read a message as the chat completions API has it, `{"tool_calls": [{"id": …, "function": {…}}]}`.

    The first such object after the thinking counts; `arguments` is a JSON text, or the object itself.
    """
    message = _openai_message(_spoken(text))
    if message is None or isinstance(message, BadCall):
        return [] if message is None else [message]
    entries = message.get("tool_calls")
    if entries is None:
        return []
    if not isinstance(entries, list):
        return [BadCall(reason='"tool_calls" must be a list')]
    return list(_openai_entries(entries[:MAX_CALLS]))


def _openai_message(spoken: str) -> dict[str, Any] | BadCall | None:
    """Return the first JSON object with tool calls; it may begin at any brace before their key."""
    key_at = spoken.find(_OPENAI_KEY)
    begin, problem = spoken.find("{"), None
    for _ in range(_MAX_BRACES):
        if not 0 <= begin < key_at:
            break
        try:
            message, _ = _JSON.raw_decode(spoken, begin)
        except (ValueError, RecursionError) as error:
            problem = BadCall(reason=f"the tool calls are not valid JSON: {error}")
        else:
            if "tool_calls" in message:
                found: dict[str, Any] = message
                return found
        begin = spoken.find("{", begin + 1)
    return problem


def _openai_entries(entries: list[Any]) -> Iterator[ToolCall | BadCall]:
    for entry in entries:
        function = entry.get("function") if isinstance(entry, dict) else None
        if isinstance(function, dict):
            found = entry.get("id")
            yield _call_of(function, found if isinstance(found, str) else None)
        else:
            yield BadCall(reason='a tool call must be an object with "function", an object')


def _spoken(text: str) -> str:
    """Return what comes after the thinking: a call that is only thought about is none.

    The thinking ends once; what looks like its end inside a call is part of that call.
    """
    thought, ends, spoken = text.partition(_THOUGHT_END)
    is_in_call = thought.count(_BEGIN) > thought.count(_END)
    return spoken if ends and not is_in_call else text


def _read_call(body: str) -> ToolCall | BadCall:
    try:
        value = _JSON.decode(body)
    except (ValueError, RecursionError) as error:
        return BadCall(reason=f"the call is not valid JSON: {error}")
    if not isinstance(value, dict):
        return BadCall(reason='a call must be a JSON object with "name" and "arguments"')
    return _call_of(value, None)


def _call_of(value: dict[str, Any], call_id: str | None) -> ToolCall | BadCall:
    name, arguments = value.get("name"), value.get("arguments")
    if not isinstance(name, str) or not name:
        return BadCall(reason='the call has no "name", a text')
    if isinstance(arguments, str):
        try:
            arguments = _JSON.decode(arguments)
        except (ValueError, RecursionError) as error:
            return BadCall(reason=f"the arguments of {name} are not valid JSON: {error}")
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        return BadCall(reason=f"the arguments of {name} must be a JSON object")
    return ToolCall(name=name, arguments=arguments, id=call_id)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


_JSON: Final = json.JSONDecoder(parse_constant=_refuse)
