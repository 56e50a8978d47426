"""Tools: what a model is told of them, and what it reads when it calls one."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
import pytest

from espalier.errors import PluginError
from espalier.rollout import Sample
from espalier.rollout.tools import Tool, call_tool, load_tools, tools

HERE = __name__


def search(
    query: Annotated[str, msgspec.Meta(description="what to look for")],
    k: Annotated[int, msgspec.Meta(ge=1)] = 3,
    order: Literal["best", "newest"] = "best",
) -> list[str]:
    """Find passages.

    What stands here is for people.
    """
    return [f"{query} {order}"] * k


class Counter:
    """Counts up."""

    def __init__(self) -> None:
        self.value = 0

    async def __call__(self, by: int) -> int:
        self.value += by
        return self.value


counter = Counter()
GIVEN = Tool(
    name="anything",
    description="Takes anything.",
    parameters={"type": "object", "properties": {"a": {"type": "string", "pattern": "^x"}}},
    function=lambda **arguments: arguments,
)


def said(tool: Any, arguments: dict[str, Any], *, timeout_s: float = 20.0) -> str:
    tool = tool if isinstance(tool, Tool) else Tool.of(tool)
    return asyncio.run(call_tool(tool, arguments, sample=Sample(index=7), timeout_s=timeout_s))


def test_a_tool_is_told_by_its_signature() -> None:
    [tool] = load_tools([f"{HERE}:search"])
    assert tool.spec == {
        "type": "function",
        "function": {
            "name": "search",
            "description": "Find passages.",
            "parameters": {
                "type": "object",
                "properties": {
                    "query": {"type": "string", "description": "what to look for"},
                    "k": {"type": "integer", "minimum": 1, "default": 3},
                    "order": {"enum": ["best", "newest"], "default": "best"},
                },
                "required": ["query"],
            },
        },
    }


def test_a_tools_own_schema_is_told_as_it_is() -> None:
    [tool] = load_tools([f"{HERE}:GIVEN"])
    assert tool.spec["function"]["parameters"] == GIVEN.parameters
    assert said(tool, {"a": "x", "b": [1]}) == '{"a":"x","b":[1]}'


def test_tools_are_found_by_name() -> None:
    @tools.register("tests_adder")
    def add(a: int, b: int) -> int:
        return a + b

    found, counts = load_tools(["tests_adder", f"{HERE}.counter"])
    assert (found.name, counts.name) == ("tests_adder", "Counter")
    assert said(found, {"a": "2", "b": 3}) == "5"
    assert (said(counts, {"by": 2}), said(counts, {"by": 2})) == ("2", "4")
    with pytest.raises(PluginError, match="unknown tool 'nothing': known are"):
        load_tools(["nothing"])


def unannotated(a, b: int = 2) -> None: ...  # type: ignore[no-untyped-def]
def listed(*queries: str) -> None: ...
def threaded(lock: threading.Thread) -> None: ...


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["unannotated"],
            "the tool 'unannotated' cannot be told to a model: the parameter 'a' has no annotation",
        ),
        (["listed"], r"\*queries: str cannot be given by name"),
        (["threaded"], "the tool 'threaded' cannot be told to a model"),
        (["HERE"], "is a str, not a function or a Tool"),
        (["search", "search"], "several tools 'search'"),
    ],
)
def test_a_tool_that_no_model_can_call_is_refused_at_the_start(names: list[str], message: str) -> None:
    with pytest.raises(PluginError, match=message):
        load_tools([f"{HERE}:{name}" for name in names])


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({}, "missing required field `query`"),
        ({"query": ["Lyon"]}, "Expected `str`, got `array`"),
        ({"query": "Lyon", "k": 0}, "Expected `int` >= 1"),
        ({"query": "Lyon", "limit": 2}, "unknown field `limit`"),
    ],
)
def test_arguments_that_do_not_fit_are_told(arguments: dict[str, Any], reason: str) -> None:
    told = said(search, arguments)
    assert told.startswith("Error: search failed: the arguments do not fit:")
    assert reason in told


def test_what_a_tool_returns_becomes_text() -> None:
    assert said(search, {"query": "Lyon", "k": 2}) == '["Lyon best","Lyon best"]'


def test_a_tool_may_ask_for_the_sample() -> None:
    def whose(sample: Sample, number: int) -> str:
        return f"{sample.index} {number}"

    assert "sample" not in Tool.of(whose).parameters["properties"]
    assert said(whose, {"number": 3}) == "7 3"
    assert "unknown field `sample`" in said(whose, {"number": 3, "sample": 1})


def raising() -> str:
    raise KeyError("x" * 5000)


async def raising_later() -> str:
    raise ValueError("no such page")


def unwritable() -> object:
    return object()


def exiting() -> str:
    raise SystemExit


def iterating() -> str:
    return next(iter(()))


async def timing_out_itself() -> str:
    raise TimeoutError("the index is slow")


async def cancelling() -> str:
    raise asyncio.CancelledError


@pytest.mark.parametrize(
    ("tool", "reason"),
    [
        (raising, "KeyError: 'xxx"),
        (raising_later, "ValueError: no such page"),
        (unwritable, "TypeError"),
        (exiting, "SystemExit"),
        (iterating, "StopIteration"),
        (timing_out_itself, "TimeoutError: the index is slow"),
        (cancelling, "CancelledError"),
    ],
)
def test_what_goes_wrong_in_a_tool_is_told_in_a_few_words(tool: Any, reason: str) -> None:
    told = said(tool, {})
    assert told.startswith(f"Error: {tool.__name__} failed: ")
    assert reason in told
    assert len(told) < 600


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    gate = threading.Event()
    yield gate
    gate.set()


def test_a_tool_that_hangs_is_left_behind(gate: threading.Event) -> None:
    def hanging() -> None:
        gate.wait()

    async def hanging_too() -> None:
        await asyncio.Event().wait()

    for tool in (hanging, hanging_too):
        assert said(tool, {}, timeout_s=0.05) == f"Error: {tool.__name__} failed: it took longer than 0.05 s"


def test_a_call_that_is_cancelled_stays_cancelled() -> None:
    async def run() -> bool:
        begun = asyncio.Event()

        async def hanging() -> None:
            begun.set()
            await asyncio.Event().wait()

        call = asyncio.create_task(call_tool(Tool.of(hanging), {}, sample=Sample(), timeout_s=60.0))
        await begun.wait()
        call.cancel()
        await asyncio.wait([call])
        return call.cancelled()

    assert asyncio.run(run())
