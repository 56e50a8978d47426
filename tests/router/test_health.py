import pytest

from espalier.router.health import Health, Signal, State, next_health

HEALTHY = Health(state=State.HEALTHY)
DEAD = Health(state=State.DEAD, failures=3)


@pytest.mark.parametrize(
    ("before", "signal", "after"),
    [
        (Health(), Signal.CALL_OK, HEALTHY),
        (Health(), Signal.CONNECT_FAILED, Health(state=State.SUSPECT, failures=1)),
        (Health(), Signal.PROBE_OK, Health()),
        (HEALTHY, Signal.CALL_OK, HEALTHY),
        (HEALTHY, Signal.CONNECT_FAILED, Health(state=State.SUSPECT, failures=1)),
        (HEALTHY, Signal.PROBE_OK, HEALTHY),
        (Health(state=State.SUSPECT, failures=2), Signal.CONNECT_FAILED, DEAD),
        (Health(state=State.SUSPECT, failures=2), Signal.CALL_OK, HEALTHY),
        (DEAD, Signal.PROBE_OK, Health(state=State.SUSPECT)),
        (DEAD, Signal.CALL_OK, HEALTHY),
        (DEAD, Signal.CONNECT_FAILED, Health(state=State.DEAD, failures=4)),
    ],
)
def test_transitions(before: Health, signal: Signal, after: Health) -> None:
    assert next_health(before, signal, failure_threshold=3) == after


def test_only_the_dead_are_not_routable() -> None:
    assert {state for state in State if not Health(state=state).is_routable} == {State.DEAD}
