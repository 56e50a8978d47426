"""An update of the whole fleet's weights, as a pure sequence of steps.

For each step it tells what a worker is sent, and where the worker stands after its answer:

    ask ──▶ pause ──▶ update ──▶ check ──▶ continue

Every step is taken by all workers before the next one begins, so that no worker samples from the new weights
while another one may still sample from the old. A worker that fails a step is left out of those that follow,
but for two: whoever was told to update is checked, for a worker can have taken the weights and said that it
failed, and **whoever was told to pause is told to continue**, whatever has happened since.

What counts is not what a worker answers to the update but what it reports afterwards.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from ..calls import JsonObject
from .answers import Answer, Report, report_of


class Mode(StrEnum):
    """What becomes of generations that run: ended, begun anew, or continued as they are."""

    ABORT = "abort"
    RETRACT = "retract"
    IN_PLACE = "in_place"


class Step(StrEnum):
    """What a worker is told, in this order."""

    ASK = "ask"
    PAUSE = "pause"
    UPDATE = "update"
    CHECK = "check"
    CONTINUE = "continue"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request of SGLang's."""

    method: str
    path: str
    body: JsonObject | None = None
    is_quick: bool = False
    """Whether a worker answers it at once, whatever it is doing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightUpdate:
    """Which weights to load and how. `options` are members of SGLang's request besides."""

    model_path: str
    weight_version: str
    mode: Mode = Mode.ABORT
    flush_cache: bool | None = None
    options: Mapping[str, object] = field(default_factory=dict)

    def request(self, step: Step) -> Request:
        """Return what a worker is told at `step`."""
        if step is Step.PAUSE:
            return Request(method="POST", path="/pause_generation", body={"mode": self.mode.value})
        if step is Step.UPDATE:
            return Request(method="POST", path="/update_weights_from_disk", body=self._update_body())
        if step is Step.CONTINUE:
            return Request(method="POST", path="/continue_generation", body={}, is_quick=True)
        return Request(method="GET", path="/model_info", is_quick=True)

    def _update_body(self) -> JsonObject:
        """Return the body of the update.

        Generations that continue in place need their cached tokens, and SGLang answers 400 where it cannot
        flush; in the other modes nothing of the old weights may be reused.
        """
        flush = self.mode is not Mode.IN_PLACE if self.flush_cache is None else self.flush_cache
        return {
            **self.options,
            "model_path": self.model_path,
            "weight_version": self.weight_version,
            "flush_cache": flush,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The step that a worker failed, and why."""

    step: Step
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far one worker has come. Changes by `began` and `answered` alone."""

    reached: Step | None = None
    before: Report | None = None
    after: Report | None = None
    failure: Failure | None = None
    refusal: str | None = None
    """What the worker said where it called the update a failure."""
    may_be_paused: bool = False
    latencies_s: Mapping[Step, float] = field(default_factory=dict)

    @property
    def succeeded(self) -> bool:
        """Whether the worker serves the new weights and has gone on."""
        return self.failure is None and self.reached is Step.CONTINUE and not self.may_be_paused

    @property
    def served(self) -> str | None:
        """The weight version that the worker was last known to serve."""
        report = self.after or self.before
        return None if report is None else report.weight_version

    def takes_part(self, step: Step) -> bool:
        """Tell whether the worker takes `step`."""
        if step is Step.CONTINUE:
            return self.may_be_paused
        if step is Step.CHECK:
            return self.reached is Step.UPDATE
        return self.failure is None

    def began(self, step: Step) -> "Progress":
        """Return the progress once `step` is about to be sent: from here on it may have had its effect."""
        return replace(self, reached=step, may_be_paused=self.may_be_paused or step is Step.PAUSE)

    def answered(self, step: Step, answer: Answer, update: WeightUpdate) -> "Progress":
        """Return the progress after the worker's answer to `step`."""
        latencies_s = {**self.latencies_s, step: answer.latency_s}
        after = _AFTER[step](replace(self, latencies_s=latencies_s), answer, update)
        return after if self.failure is None else replace(after, failure=self.failure)


def given_up(progress: Progress, reason: str) -> Progress:
    """Return the progress of a worker whose update ends early, unless it had failed before."""
    if progress.failure is not None:
        return progress
    return replace(progress, failure=Failure(step=progress.reached or Step.ASK, message=reason))


def _after_ask(progress: Progress, answer: Answer, _: WeightUpdate) -> Progress:
    report = report_of(answer)
    if report is None:
        return _failed(progress, Step.ASK, answer.message)
    return replace(progress, before=report)


def _after_pause(progress: Progress, answer: Answer, _: WeightUpdate) -> Progress:
    return progress if answer.succeeded else _failed(progress, Step.PAUSE, answer.message)


def _after_update(progress: Progress, answer: Answer, _: WeightUpdate) -> Progress:
    return progress if answer.succeeded else replace(progress, refusal=answer.message)


def _after_check(progress: Progress, answer: Answer, update: WeightUpdate) -> Progress:
    """Judge by the worker's report. One that called the update a failure made it if its report changed."""
    report = report_of(answer)
    after = replace(progress, after=report)
    if progress.refusal is not None and (report is None or report == progress.before):
        return _failed(after, Step.UPDATE, progress.refusal)
    if report is None:
        return _failed(after, Step.CHECK, f"It did not tell what it serves: {answer.message}")
    if report.weight_version != update.weight_version:
        reason = progress.refusal or f"It reports the weight version {report.weight_version!r}"
        return _failed(after, Step.CHECK, reason)
    return after


def _after_continue(progress: Progress, answer: Answer, _: WeightUpdate) -> Progress:
    if answer.succeeded:
        return replace(progress, may_be_paused=False)
    return _failed(progress, Step.CONTINUE, answer.message)


_AFTER: Final = {
    Step.ASK: _after_ask,
    Step.PAUSE: _after_pause,
    Step.UPDATE: _after_update,
    Step.CHECK: _after_check,
    Step.CONTINUE: _after_continue,
}


def _failed(progress: Progress, step: Step, message: str) -> Progress:
    return replace(progress, failure=Failure(step=step, message=message))
