"""Tools: functions that the model may call between its turns.

A tool is any function, plain or async, whose parameters are annotated: its name, docstring and signature are
what the model is told. A parameter named `sample` is given the sample and not told. `Tool` wraps a function
whose schema says more than its signature.

Whatever goes wrong in a call is an observation for the model: it may call again, better.
"""

import asyncio
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec

from ..errors import PluginError, RolloutError
from ..registry import Registry
from .deadline import deadline
from .sample import Sample
from .threads import in_thread, thread_slot

_SAMPLE: Final = "sample"
_MAX_ERROR_CHARS: Final = 500
"""Characters of an error that the model is told: it may quote all that the tool was given."""


class ToolFunction(Protocol):
    """What a tool's function is called with: the arguments, by name. It may be async."""

    def __call__(self, **arguments: Any) -> object:
        """Return what the model is told: a text, or a value that becomes JSON."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function, and what the model is told about it."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    """JSON schema of the arguments, an object"""

    function: Callable[..., object]
    arguments: type[msgspec.Struct] | None = None
    """what checks and converts the arguments; without it they are passed as the model wrote them"""

    @classmethod
    def of(cls, function: Callable[..., object], name: str | None = None) -> "Tool":
        """Return the tool that `function` is by its signature and docstring.

        Types of parameters are those that JSON has; `Annotated[int, msgspec.Meta(ge=1, description=…)]` says
        more of one.

        Raises: PluginError where a parameter has no annotation, or one that JSON has no words for.
        """
        name = name or str(getattr(function, "__name__", type(function).__name__))
        described = function if inspect.isroutine(function) else type(function).__call__
        try:
            hints = typing.get_type_hints(described, include_extras=True)
            fields = [_field(parameter, hints) for parameter in _told_parameters(function)]
            arguments = msgspec.defstruct(f"{name}_arguments", fields, forbid_unknown_fields=True)
            _, schemas = msgspec.json.schema_components([arguments])
        except (TypeError, ValueError, NameError) as error:
            raise PluginError(f"the tool {name!r} cannot be told to a model: {error}") from error
        schema = schemas.pop(arguments.__name__)
        parameters = {"type": "object", "properties": schema["properties"], "required": schema["required"]}
        if schemas:
            parameters["$defs"] = schemas
        return cls(
            name=name,
            description=inspect.cleandoc(function.__doc__ or "").partition("\n\n")[0],
            parameters=parameters,
            function=function,
            arguments=arguments,
        )

    @property
    def spec(self) -> dict[str, Any]:
        """What a chat template is told of the tool, as the chat completions API has it."""
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": dict(self.parameters),
        }
        return {"type": "function", "function": function}


tools: Registry[Tool | Callable[..., object]] = Registry("tool")
"""What a model may call."""


def load_tools(names: Sequence[str]) -> tuple[Tool, ...]:
    """Return the tools that are registered as `names`, or are named by their module and attribute.

    Raises: PluginError where one is unknown or cannot be told to a model, or two have the same name.
    """
    found = [_tool(name) for name in names]
    told = [tool.name for tool in found]
    for name in told:
        if told.count(name) > 1:
            raise PluginError(f"there are several tools {name!r}: a model cannot tell them apart")
    return tuple(found)


async def call_tool(tool: Tool, arguments: Mapping[str, Any], *, sample: Sample, timeout_s: float) -> str:
    """Return what the tool says to `arguments`, or in words why it says nothing.

    A plain function runs in a thread, which is left behind where it takes longer than `timeout_s`; waiting
    for a thread costs it no time.
    """
    try:
        given = _checked(tool, arguments)
        if _SAMPLE in inspect.signature(tool.function).parameters:
            given[_SAMPLE] = sample
        return _text(await _called(tool, given, timeout_s))
    except RolloutError as error:
        why = str(error)
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        why = _told(error)
    except msgspec.ValidationError as error:
        why = f"the arguments do not fit: {error}"
    except Exception as error:  # noqa: BLE001  a tool may raise anything, and the model is told
        why = _told(error)
    return f"Error: {tool.name} failed: {why[:_MAX_ERROR_CHARS]}"


async def _called(tool: Tool, arguments: Mapping[str, Any], timeout_s: float) -> object:
    function = tool.function
    if inspect.iscoroutinefunction(function):
        async with deadline(timeout_s, "it", RolloutError):
            return await function(**arguments)
    async with thread_slot(f"tool {tool.name!r}"), deadline(timeout_s, "it", RolloutError):
        result: object = await in_thread(lambda: function(**arguments))
        return await result if inspect.isawaitable(result) else result


def _checked(tool: Tool, arguments: Mapping[str, Any]) -> dict[str, Any]:
    if tool.arguments is None:
        return dict(arguments)
    return msgspec.structs.asdict(msgspec.convert(dict(arguments), tool.arguments, strict=False))


def _text(result: object) -> str:
    return result if isinstance(result, str) else msgspec.json.encode(result).decode()


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _tool(name: str) -> Tool:
    found = tools.resolve(name)
    if isinstance(found, Tool):
        return found
    if not callable(found):
        raise PluginError(f"the tool {name!r} is a {type(found).__name__}, not a function or a Tool")
    is_path = ":" in name or "." in name
    return Tool.of(found, None if is_path else name)


def _told_parameters(function: Callable[..., object]) -> list[inspect.Parameter]:
    parameters = inspect.signature(function).parameters.values()
    for parameter in parameters:
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"the parameter {parameter} cannot be given by name")
    return [parameter for parameter in parameters if parameter.name != _SAMPLE]


def _field(parameter: inspect.Parameter, hints: Mapping[str, Any]) -> tuple[str, Any] | tuple[str, Any, Any]:
    if parameter.name not in hints:
        raise TypeError(f"the parameter {parameter.name!r} has no annotation")
    if parameter.default is parameter.empty:
        return (parameter.name, hints[parameter.name])
    return (parameter.name, hints[parameter.name], parameter.default)
