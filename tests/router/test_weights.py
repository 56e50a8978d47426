"""The sequence of a weight update, without any worker."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espalier.router.answers import Answer
from espalier.router.weights import Mode, Progress, Step, WeightUpdate, given_up
from espalier.router.workers import Worker

WORKER = Worker(url="http://a:1", ordinal=1)
UPDATE = WeightUpdate(model_path="/new", weight_version="2")
OLD = {"weight_version": "1", "model_path": "/old"}
NEW = {"weight_version": "2", "model_path": "/new"}
DONE = {"success": True, "message": "done"}
REFUSED = {"success": False, "message": "not flushed"}

Said = tuple[int, object]
"""A worker's status and body."""

WELL: dict[Step, Said] = {
    Step.ASK: (200, OLD),
    Step.PAUSE: (200, {"status": "ok"}),
    Step.UPDATE: (200, DONE),
    Step.CHECK: (200, NEW),
    Step.CONTINUE: (200, {"status": "ok"}),
}


def taken(**said: Said) -> tuple[Progress, list[Step]]:
    """Take one worker through all steps; it answers well but where `said` tells otherwise."""
    progress = Progress()
    steps: list[Step] = []
    for step in Step:
        if progress.takes_part(step):
            steps.append(step)
            status, body = said.get(step.value, WELL[step])
            progress = progress.began(step)
            answer = Answer(worker=WORKER, status=status, body=body, latency_s=0.5)
            progress = progress.answered(step, answer, UPDATE)
    return progress, steps


def test_worker_that_does_all_steps_serves_the_new_weights() -> None:
    progress, steps = taken()
    assert steps == [Step.ASK, Step.PAUSE, Step.UPDATE, Step.CHECK, Step.CONTINUE]
    assert (progress.succeeded, progress.served, progress.may_be_paused) == (True, "2", False)
    assert progress.latencies_s == dict.fromkeys(steps, 0.5)


@pytest.mark.parametrize(
    ("said", "steps", "failed_step", "served"),
    [
        ({"ask": (502, {"error": "refused"})}, ["ask"], Step.ASK, None),
        ({"pause": (500, None)}, ["ask", "pause", "continue"], Step.PAUSE, "1"),
        (
            {"update": (400, REFUSED), "check": (200, OLD)},
            ["ask", "pause", "update", "check", "continue"],
            Step.UPDATE,
            "1",
        ),
        (
            {"update": (504, None), "check": (504, None)},
            ["ask", "pause", "update", "check", "continue"],
            Step.UPDATE,
            "1",
        ),
        ({"check": (200, OLD)}, ["ask", "pause", "update", "check", "continue"], Step.CHECK, "1"),
        ({"check": (502, None)}, ["ask", "pause", "update", "check", "continue"], Step.CHECK, "1"),
        ({"continue": (502, None)}, ["ask", "pause", "update", "check", "continue"], Step.CONTINUE, "2"),
    ],
)
def test_worker_that_fails_a_step_is_left_out_but_continued(
    said: dict[str, Said], steps: list[str], failed_step: Step, served: str | None
) -> None:
    progress, took = taken(**said)
    assert took == steps
    assert progress.failure is not None
    assert progress.failure.step is failed_step
    assert (progress.succeeded, progress.served) == (False, served)


def test_update_that_was_refused_and_made_all_the_same_counts_by_the_report() -> None:
    progress, _ = taken(update=(400, REFUSED))
    assert (progress.succeeded, progress.served, progress.refusal) == (True, "2", "not flushed")


def test_update_that_was_refused_does_not_count_where_the_version_was_there_before() -> None:
    progress, _ = taken(ask=(200, NEW), update=(400, REFUSED))
    assert progress.failure is not None
    assert (progress.failure.step, progress.failure.message) == (Step.UPDATE, "not flushed")


def test_worker_that_tells_no_version_has_not_the_one_that_was_asked_for() -> None:
    progress, _ = taken(check=(200, {"model_path": "/new"}))
    assert progress.failure is not None
    assert "reports the weight version None" in progress.failure.message


def test_first_failure_is_the_one_that_is_told() -> None:
    progress, _ = taken(update=(400, REFUSED), check=(200, OLD), **{"continue": (502, None)})
    assert progress.failure is not None
    assert progress.failure.step is Step.UPDATE
    assert progress.may_be_paused


def test_giving_up_fails_who_has_not_failed_yet() -> None:
    begun = Progress().began(Step.ASK).began(Step.PAUSE)
    gone = given_up(begun, "shutting down")
    assert gone.failure is not None
    assert (gone.failure.step, gone.failure.message) == (Step.PAUSE, "shutting down")
    assert gone.takes_part(Step.CONTINUE)
    assert given_up(gone, "again") is gone


@given(
    answers=st.lists(
        st.tuples(st.sampled_from([200, 400, 502, 504]), st.sampled_from([OLD, NEW, DONE, REFUSED, None])),
        min_size=5,
        max_size=5,
    ),
    ends_after=st.integers(0, 4),
)
def test_whoever_was_told_to_pause_is_told_to_continue(answers: Sequence[Said], ends_after: int) -> None:
    progress = Progress()
    was_told_to_pause = False
    for step, (status, body) in zip(list(Step)[:ends_after], answers, strict=False):
        if progress.takes_part(step):
            was_told_to_pause = was_told_to_pause or step is Step.PAUSE
            progress = progress.began(step).answered(
                step, Answer(worker=WORKER, status=status, body=body), UPDATE
            )
    assert given_up(progress, "over").takes_part(Step.CONTINUE) is was_told_to_pause
    assert not given_up(progress, "over").succeeded


@pytest.mark.parametrize(
    ("mode", "asked", "flushes"),
    [
        (Mode.ABORT, None, True),
        (Mode.RETRACT, None, True),
        (Mode.IN_PLACE, None, False),
        (Mode.ABORT, False, False),
        (Mode.IN_PLACE, True, True),
    ],
)
def test_cache_is_flushed_but_where_generations_need_it(
    mode: Mode, asked: bool | None, flushes: bool
) -> None:
    update = WeightUpdate(
        model_path="/m", weight_version="7", mode=mode, flush_cache=asked, options={"load_format": "auto"}
    )
    assert update.request(Step.PAUSE).body == {"mode": mode.value}
    assert update.request(Step.UPDATE).body == {
        "model_path": "/m",
        "weight_version": "7",
        "flush_cache": flushes,
        "load_format": "auto",
    }
