"""What each signal makes of each state, and what no order of signals can bring about."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espalier.router.health import FAILURES, IN_CONTACT, Health, Signal, State, Thresholds, next_health

THRESHOLDS = Thresholds(failures=3, successes=2)

HEALTHY = Health(contact=State.HEALTHY)

BEFORE = {
    "starting": Health(),
    "unread": Health(is_unread=True),
    "healthy": HEALTHY,
    "suspect": Health(contact=State.SUSPECT, failures=1),
    "dying": Health(contact=State.SUSPECT, failures=2, successes=1),
    "dead": Health(contact=State.DEAD),
    "reviving": Health(contact=State.DEAD, successes=1),
    "paused": dataclasses.replace(HEALTHY, is_paused=True),
    "stale": dataclasses.replace(HEALTHY, is_stale=True),
    "draining": dataclasses.replace(HEALTHY, is_draining=True),
}

AFTER = """
                starting unread   healthy  suspect  dying    dead     reviving paused   stale    draining
call_ok         healthy  starting healthy  healthy  healthy  dead     dead     paused   stale    draining
connect_failed  suspect  starting suspect  suspect  dead     dead     dead     paused   stale    draining
call_broken     suspect  starting suspect  suspect  dead     dead     dead     paused   stale    draining
probe_ok        healthy  healthy  healthy  suspect  healthy  dead     suspect  healthy  stale    draining
probe_paused    paused   paused   paused   paused   paused   dead     paused   paused   stale    draining
probe_failed    suspect  starting suspect  suspect  dead     dead     dead     paused   stale    draining
paused          paused   starting paused   paused   paused   dead     dead     paused   stale    draining
resumed         starting starting healthy  suspect  suspect  dead     dead     healthy  stale    draining
fell_behind     stale    stale    stale    stale    stale    dead     dead     stale    stale    draining
caught_up       starting starting healthy  suspect  suspect  dead     dead     paused   healthy  draining
added_again     starting starting healthy  suspect  suspect  dead     dead     paused   stale    draining
removed         draining draining draining draining draining draining draining draining draining draining
"""
"""The state that each signal (row) makes of each one before it (column)."""


def table() -> list[tuple[str, Signal, State]]:
    columns, *rows = [line.split() for line in AFTER.strip().splitlines()]
    return [
        (before, Signal(signal), State(after))
        for signal, *states in rows
        for before, after in zip(columns, states, strict=True)
    ]


def after(health: Health, *signals: Signal) -> Health:
    for signal in signals:
        health = next_health(health, signal, THRESHOLDS)
    return health


@pytest.mark.parametrize(("before", "signal", "expected"), table())
def test_transition(before: str, signal: Signal, expected: State) -> None:
    assert after(BEFORE[before], signal).state is expected


def test_table_holds_every_state_and_every_signal() -> None:
    assert {(before, signal) for before, signal, _ in table()} == {(b, s) for b in BEFORE for s in Signal}
    assert {health.state for health in BEFORE.values()} == set(State)


@pytest.mark.parametrize("failure", sorted(FAILURES))
def test_failures_kill_only_in_a_row(failure: Signal) -> None:
    assert after(HEALTHY, failure, failure, Signal.CALL_OK, failure, failure).state is State.SUSPECT
    assert after(HEALTHY, failure, failure, failure).state is State.DEAD


def test_failures_of_all_kinds_make_one_row() -> None:
    assert after(HEALTHY, Signal.CONNECT_FAILED, Signal.CALL_BROKEN, Signal.PROBE_FAILED).state is State.DEAD


def test_one_answered_probe_does_not_end_a_row_of_broken_calls() -> None:
    broken = (Signal.CALL_BROKEN, Signal.PROBE_OK)
    assert after(HEALTHY, *broken, *broken, *broken).contact is State.DEAD


def test_idle_worker_that_failed_once_is_healthy_after_answering_probes() -> None:
    assert after(HEALTHY, Signal.CONNECT_FAILED, Signal.PROBE_OK, Signal.PROBE_OK) == HEALTHY


def test_dead_worker_revives_only_by_answered_probes_in_a_row() -> None:
    dead = BEFORE["dead"]
    assert after(dead, Signal.CALL_OK, Signal.CALL_OK, Signal.CALL_OK) is dead
    assert after(dead, Signal.PROBE_OK, Signal.PROBE_FAILED, Signal.PROBE_OK).state is State.DEAD
    assert after(dead, Signal.PROBE_OK, Signal.PROBE_OK) == Health(contact=State.SUSPECT)


def test_dead_worker_that_is_added_again_revives_by_one_probe() -> None:
    stale = Health(contact=State.DEAD, is_stale=True)
    assert after(stale, Signal.ADDED_AGAIN).is_routable is False
    assert after(stale, Signal.ADDED_AGAIN, Signal.PROBE_OK) == Health(contact=State.SUSPECT)


def test_paused_worker_dies_of_refusals_and_revives_resumed() -> None:
    dead = after(BEFORE["paused"], *[Signal.CONNECT_FAILED] * 3)
    assert dead.state is State.DEAD
    assert after(dead, Signal.PROBE_OK, Signal.PROBE_OK).state is State.SUSPECT


def test_facts_do_not_undo_each_other() -> None:
    paused_and_stale = after(HEALTHY, Signal.PAUSED, Signal.FELL_BEHIND)
    assert after(paused_and_stale, Signal.CAUGHT_UP).state is State.PAUSED
    assert after(paused_and_stale, Signal.RESUMED).state is State.STALE
    assert after(paused_and_stale, Signal.CAUGHT_UP, Signal.RESUMED) == HEALTHY


def test_nothing_new_is_the_same_object() -> None:
    for health in BEFORE.values():
        settled = after(health, *[Signal.PROBE_PAUSED] * 4)
        assert after(settled, Signal.PROBE_PAUSED) is settled
    assert after(HEALTHY, Signal.CALL_OK) is HEALTHY
    assert after(HEALTHY, Signal.RESUMED, Signal.CAUGHT_UP, Signal.ADDED_AGAIN) is HEALTHY


@pytest.mark.parametrize("signal", set(Signal) - {Signal.PROBE_OK, Signal.PROBE_PAUSED})
def test_worker_of_unread_weights_takes_no_calls_before_a_probe_has_read_them(signal: Signal) -> None:
    unread = after(Health(is_unread=True), signal)
    assert (unread.is_routable, unread.keeps_waiting) == (False, False)
    assert after(Health(is_unread=True), Signal.PROBE_OK).is_routable


@given(st.lists(st.sampled_from(Signal)), st.booleans())
def test_invariants_hold_after_any_signals(signals: list[Signal], is_unread: bool) -> None:
    health = after(Health(is_unread=is_unread), *signals)
    assert health.contact in {*IN_CONTACT, State.DEAD}
    assert 0 <= health.failures < THRESHOLDS.failures
    assert 0 <= health.successes < THRESHOLDS.successes
    assert health.failures == 0 or health.contact is State.SUSPECT
    assert health.successes == 0 or health.contact in {State.SUSPECT, State.DEAD}
    assert health.is_routable == (health.state in IN_CONTACT and not health.is_unread)
    assert not (health.is_routable and health.keeps_waiting)
    assert health.is_draining == (Signal.REMOVED in signals)
