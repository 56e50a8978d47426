from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.calls import Call
from espalier.errors import ConfigError
from espalier.policies import Policy
from espalier.router.policies import ConsistentHashing, Deterministic
from espalier.router.policies.hashing import WorkerRing
from tests.router.policies.spots import Spot, call, ordinals, spots

SESSIONS = [call(x_smg_routing_key=f"session-{number}") for number in range(2_000)]
BODIES = [call(b'{"text": "%d"}' % number) for number in range(2_000)]


def places(policy: Policy, calls: list[Call], candidates: tuple[Spot, ...]) -> list[str]:
    return [policy.choose(each, candidates).url for each in calls]


@pytest.mark.parametrize(("kind", "calls"), [(ConsistentHashing, SESSIONS), (Deterministic, BODIES)])
class TestRing:
    """What holds for whatever the key is taken from."""

    def test_key_stays_on_its_worker(self, kind: type[Policy], calls: list[Call]) -> None:
        policy, workers = kind(), spots(8)
        assert places(policy, calls, workers) == places(policy, calls, workers)

    def test_shares_are_even(self, kind: type[Policy], calls: list[Call]) -> None:
        served = Counter(places(kind(), calls, spots(8)))
        assert len(served) == 8
        assert max(served.values()) < 1.5 * len(calls) / 8

    def test_about_one_in_n_keys_moves_and_only_to_the_worker_that_joined(
        self, kind: type[Policy], calls: list[Call]
    ) -> None:
        policy, workers = kind(), spots(8)
        before = places(policy, calls, workers[:7])
        after = places(policy, calls, workers)
        moved = [new for old, new in zip(before, after, strict=True) if old != new]
        assert set(moved) == {workers[7].url}
        assert 0.6 / 8 < len(moved) / len(calls) < 1.5 / 8

    def test_only_the_keys_of_a_worker_that_leaves_move_and_come_back_with_it(
        self, kind: type[Policy], calls: list[Call]
    ) -> None:
        policy, workers = kind(), spots(8)
        left = workers[3]
        before = places(policy, calls, workers)
        without = places(policy, calls, workers[:3] + workers[4:])
        assert all(new == old for old, new in zip(before, without, strict=True) if old != left.url)
        assert left.url not in without
        assert len({new for old, new in zip(before, without, strict=True) if old == left.url}) > 3
        back = Spot(9, host="worker-4")
        assert places(policy, calls, (*workers[:3], *workers[4:], back)) == before

    def test_neither_history_nor_the_order_of_joining_matters(
        self, kind: type[Policy], calls: list[Call]
    ) -> None:
        ascending = tuple(Spot(ordinal, host=host) for ordinal, host in enumerate("abcde"))
        descending = tuple(Spot(ordinal, host=host) for ordinal, host in enumerate("edcba"))
        aged = kind()
        for number in range(40):
            aged.choose(calls[0], (Spot(number, host=f"gone-{number}"), *ascending))
        expected = places(kind(), calls, ascending)
        assert places(aged, calls, ascending) == expected
        assert places(kind(), calls, descending) == expected

    def test_list_that_changes_in_place_is_not_mistaken_for_what_it_was(
        self, kind: type[Policy], calls: list[Call]
    ) -> None:
        policy, workers = kind(), list(spots(2))
        policy.choose(calls[0], workers)
        del workers[0]
        assert {policy.choose(each, workers).ordinal for each in calls[:50]} == {2}


def test_ring_forgets_workers_that_stay_away() -> None:
    ring, staying = WorkerRing(), spots(3)
    for number in range(100):
        next(ring.positions(b"key", (*staying, Spot(number, host=f"passing-{number}"))))
        assert len(ring) <= 3 * 4


def key_and_other_calls() -> list[tuple[Call, Call]]:
    """Pairs of calls that name the same session; the second names others where they do not count."""
    body = b'{"text": "x", "session_id": "a"}'
    return [
        (call(x_smg_routing_key="a"), call(body.replace(b'"a"', b'"b"'), x_smg_routing_key="a")),
        (call(body), call(b'{"session_id": "a"}', x_session_id="b")),
        (call(body), call(x_smg_routing_key="a")),
        (call(x_session_id="a"), call(b"no json, session_id or not", x_session_id="a")),
        (call(x_session_id="a"), call(b'{"session_id": 7}', x_session_id="a")),
        (call(x_session_id="a"), call(b'{"session_id": ""}', x_session_id="a", x_smg_routing_key="")),
        (call(x_session_id="a"), call(b'["session_id"', x_session_id="a")),
        (call(x_session_id="a"), call(b'"session_id" \xff', x_session_id="a")),
    ]


@pytest.mark.parametrize(("one", "other"), key_and_other_calls())
def test_session_is_read_from_routing_key_then_body_then_session_header(one: Call, other: Call) -> None:
    policy, workers = ConsistentHashing(), spots(64)
    assert policy.choose(one, workers) is policy.choose(other, workers)


@pytest.mark.parametrize("body", [b"", b"{}", b"{", b'{"session_id": null}', b'{"session_id": {}}', b"[]"])
def test_call_without_a_session_goes_to_the_next_worker(body: bytes) -> None:
    assert ordinals(ConsistentHashing(), spots(3), 4, call(body)) == [1, 2, 3, 1]


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=12),
    st.floats(1, 4),
    st.lists(st.integers(0, 5), min_size=1, max_size=60),
)
def test_load_factor_bounds_what_a_worker_holds(loads: list[int], factor: float, sessions: list[int]) -> None:
    policy, workers = ConsistentHashing(max_load_factor=factor), spots(len(loads), loads)
    for session in sessions:
        chosen = policy.choose(SESSIONS[session], workers)
        calls = 1 + sum(spot.in_flight for spot in workers)
        assert chosen.in_flight < factor * calls / len(workers)
        chosen.in_flight += 1


def test_within_the_load_factor_sessions_stay_at_home() -> None:
    workers = spots(8, [10] * 8)
    strict, bounded = ConsistentHashing(), ConsistentHashing(max_load_factor=1.25)
    assert places(bounded, SESSIONS, workers) == places(strict, SESSIONS, workers)


def test_load_factor_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"max_load_factor=0\.9: expected a number, 1 or more"):
        ConsistentHashing(max_load_factor=0.9)


def test_deterministic_looks_at_the_body_alone() -> None:
    policy, workers = Deterministic(), spots(16)
    body = b'{"text": "x"}'
    first = policy.choose(call(body), workers)
    first.in_flight = 1_000
    assert policy.choose(call(body, path="/v1/completions", x_smg_routing_key="a"), workers) is first
    assert len({spot.ordinal for spot in (policy.choose(each, workers) for each in BODIES)}) == 16
