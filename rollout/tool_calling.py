"""Generation in turns: the model calls tools, reads what they answer, and goes on.

Invariant: a sample's tokens are its prompt's, then by turns what was sampled (mask 1) and what was observed
(mask 0). Every turn is asked for by exactly the tokens so far; no text is tokenised twice.

Theory of operation. Where an exchange stands is told by `metadata["tool_calling"]` alone: the last turn is
cut off, waits for what its tools answer, or has read that. So a sample that is cut off anywhere goes on from
there, in this rollout or the next; tools whose answers were lost are called again.
"""

import asyncio
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Final

import msgspec

from ..errors import ConfigError, RolloutError
from .chat_template import TemplateRefused
from .config import RolloutConfig
from .dataset import TOOLS_IN_METADATA, template_variables
from .generate import generate
from .observations import Answer, ObservationWriter
from .plugins import generate_functions
from .sample import Sample, Status
from .state import RolloutState, rollout_state
from .tokenizer import PromptTokenizer
from .tool_calls import BadCall, ToolCall
from .tools import Tool, call_tool

TOOL_CALLING: Final = "tool_calling"
"""Metadata key of a sample's `Exchange`."""


class EndedBy(StrEnum):
    """Why an exchange went no further."""

    ANSWER = "answer"
    """the model called no tool"""
    MAX_TURNS = "tool_max_turns"
    RESPONSE_LENGTH = "rollout_max_response_len"
    CONTEXT_LENGTH = "rollout_max_context_len"
    ABORTED = "aborted"
    """for now: it can be resumed"""


class Turn(msgspec.Struct, kw_only=True):
    """One turn of the model and what it then observed. Positions are in tokens of the response."""

    start: int
    end: int | None = None
    """None while the turn is cut off"""

    calls: int = 0
    bad_calls: int = 0
    observation_tokens: int | None = None
    """None where nothing was observed, or not yet"""

    cut_answers: int = 0
    generation_s: float = 0.0
    tools_s: float = 0.0


class Exchange(msgspec.Struct, kw_only=True):
    """What is kept of the turns, under `metadata["tool_calling"]`."""

    turns: list[Turn]
    ended_by: EndedBy | None = None


@generate_functions.register("tool_calling")
async def generate_with_tools(
    args: RolloutConfig, sample: Sample, sampling_params: Mapping[str, Any]
) -> Sample:
    """Sample turns until the model calls no tool, appending to `sample` what its tools answer.

    The tools are those of the sample's row, or else all of `args.tools`. The sample is truncated where a
    limit ends it, and aborted where the rollout is; which it was, and how long each turn took, is in
    `metadata["tool_calling"]`. Observations count as part of the response; one that leaves no room for
    another turn is not appended.

    Raises: as `generate`; ConfigError without tools, tokenizer or a chat template that knows of tools.
    """
    async with rollout_state(args) as state:
        tools = offered_tools(state.plugins.tools, sample)
        if state.tokenizer is None:
            raise ConfigError(
                "the generate function 'tool_calling' needs --hf-checkpoint: what tools answer becomes tokens"
            )
        writer = ObservationWriter(
            tokenizer=state.tokenizer,
            max_answer_tokens=args.tool_max_observation_tokens,
            template_variables=template_variables(args.apply_chat_template_kwargs),
        )
        sample.prompt = _prompt_text(sample, tools, writer)
        await _Talk(state, sample, sampling_params, tools, writer).go_on()
    return sample


def exchange_of(sample: Sample) -> Exchange:
    """Return what is known of the sample's turns; none where it has not begun.

    Raises: RolloutError where its metadata holds something else.
    """
    try:
        return msgspec.convert(sample.metadata.get(TOOL_CALLING, {"turns": []}), Exchange)
    except msgspec.ValidationError as error:
        raise RolloutError(f"sample {sample.index}: metadata {TOOL_CALLING!r}: {error}") from None


def said_in(turn: Turn, sample: Sample, tokenizer: PromptTokenizer) -> str:
    """Return what the model said in `turn`, special tokens included, and nothing of what it observed."""
    response = sample.tokens[len(sample.tokens) - sample.response_length :]
    return tokenizer.decode(response[turn.start : turn.end])


def offered_tools(tools: Sequence[Tool], sample: Sample) -> dict[str, Tool]:
    """Return the tools that `sample` may use, by name: those that its row names, or all.

    Raises: ConfigError where there are none, or the row names another one.
    """
    known = {tool.name: tool for tool in tools}
    if not known:
        raise ConfigError("the generate function 'tool_calling' needs --tools, the tools that may be called")
    named = [_name_of(spec) for spec in sample.metadata.get(TOOLS_IN_METADATA) or []]
    for name in named:
        if name not in known:
            raise ConfigError(
                f"sample {sample.index}: its row has the tool {name!r}, but --tools only {', '.join(known)}"
            )
    return {name: known[name] for name in named or known}


class _Talk:
    """The exchange of one sample, going on."""

    def __init__(
        self,
        state: RolloutState,
        sample: Sample,
        sampling_params: Mapping[str, Any],
        tools: Mapping[str, Tool],
        writer: ObservationWriter,
    ) -> None:
        self._state = state
        self._args = state.args
        self._sample = sample
        self._tools = tools
        self._writer = writer
        self._exchange = exchange_of(sample)
        self._exchange.ended_by = None
        # The times would make samples differ that are to be the same.
        self._clock = float if state.args.rollout_deterministic else asyncio.get_running_loop().time
        self._max_tokens, self._limit = sampling_params["max_new_tokens"], EndedBy.RESPONSE_LENGTH
        room = self._room_in_context()
        if room is not None and room < self._max_tokens:
            self._max_tokens, self._limit = room, EndedBy.CONTEXT_LENGTH
        self._params = {**sampling_params, "max_new_tokens": self._max_tokens}

    async def go_on(self) -> None:
        """Go on from where the exchange stands until it ends or is cut off."""
        while not await self._turn_ends_it():
            pass
        self._keep()

    async def _turn_ends_it(self) -> bool:
        turn = self._current_turn()
        if turn.end is None:
            if self._state.aborted:
                return self._end(Status.ABORTED, EndedBy.ABORTED)
            await self._sample_turn(turn)
            if self._sample.status is Status.ABORTED:
                return self._end(Status.ABORTED, EndedBy.ABORTED)
            if self._sample.status is not Status.COMPLETED:
                return self._end(self._sample.status, self._limit)
        said = said_in(turn, self._sample, self._writer.tokenizer)
        calls = self._state.plugins.tool_parser(said)
        turn.calls, turn.bad_calls = len(calls), sum(isinstance(call, BadCall) for call in calls)
        if not calls:
            return self._end(Status.COMPLETED, EndedBy.ANSWER)
        if len(self._exchange.turns) >= self._args.tool_max_turns:
            return self._end(Status.TRUNCATED, EndedBy.MAX_TURNS)
        self._sample.status = Status.ABORTED  # whoever is cut off while the tools are at work can be resumed
        self._keep()
        return not await self._observe(turn, said, calls)

    def _current_turn(self) -> Turn:
        """Return the turn that is not over yet, or a new one."""
        turns = self._exchange.turns
        if not turns or turns[-1].observation_tokens is not None:
            turns.append(Turn(start=self._sample.response_length if turns else 0))
        return turns[-1]

    async def _sample_turn(self, turn: Turn) -> None:
        begun_at = self._clock()
        await generate(self._args, self._sample, self._params)
        turn.generation_s += self._clock() - begun_at
        if self._sample.status is not Status.ABORTED:
            turn.end = self._sample.response_length

    async def _observe(self, turn: Turn, said: str, calls: Sequence[ToolCall | BadCall]) -> bool:
        """Append what the tools answer; return whether there is room for it and another turn."""
        begun_at = self._clock()
        answers = await asyncio.gather(*(self._answer(call) for call in calls))
        elapsed_s = self._clock() - begun_at
        turn.tools_s += elapsed_s
        self._sample.non_generation_time += elapsed_s
        observation = self._writer.write(said, answers)
        turn.cut_answers = observation.cut_answers
        if self._sample.response_length + len(observation.tokens) >= self._max_tokens:
            self._end(Status.TRUNCATED, self._limit)
            return False
        self._sample.append_response_tokens(tokens=observation.tokens, trainable=False, text=observation.text)
        turn.observation_tokens = len(observation.tokens)
        self._keep()
        return True

    async def _answer(self, call: ToolCall | BadCall) -> Answer:
        if isinstance(call, BadCall):
            return Answer(name="error", text=f"Error: {call.reason}")
        tool = self._tools.get(call.name)
        if tool is None:
            text = f"Error: there is no tool {call.name!r}, only {', '.join(self._tools)}"
        else:
            text = await call_tool(
                tool, call.arguments, sample=self._sample, timeout_s=self._args.tool_timeout_s
            )
        return Answer(name=call.name, text=text, call_id=call.id)

    def _room_in_context(self) -> int | None:
        """Return how many tokens a response may have beside its prompt; None where nothing limits both."""
        if self._args.rollout_max_context_len is None:
            return None
        prompt_tokens = len(self._sample.tokens) - self._sample.response_length
        if not prompt_tokens:  # nothing has been sent yet
            [prompt_tokens] = self._writer.tokenizer.count_tokens([str(self._sample.prompt)])
        return self._args.rollout_max_context_len - prompt_tokens

    def _end(self, status: Status, ended_by: EndedBy) -> bool:
        self._sample.status = status
        self._exchange.ended_by = ended_by
        return True

    def _keep(self) -> None:
        kept = msgspec.to_builtins(self._exchange)
        self._sample.metadata = {**self._sample.metadata, TOOL_CALLING: kept}


def _prompt_text(sample: Sample, tools: Mapping[str, Tool], writer: ObservationWriter) -> str:
    """Return the sample's prompt; one of messages is rendered, with the tools."""
    if isinstance(sample.prompt, str):
        return sample.prompt
    specs = sample.metadata.get(TOOLS_IN_METADATA) or [tool.spec for tool in tools.values()]
    try:
        return writer.tokenizer.template.render(
            sample.prompt, specs, add_generation_prompt=True, **writer.template_variables
        )
    except TemplateRefused as error:
        raise RolloutError(f"sample {sample.index}: {error}") from None


def _name_of(spec: Mapping[str, Any]) -> str:
    function = spec.get("function")
    return str((function if isinstance(function, Mapping) else spec).get("name"))
