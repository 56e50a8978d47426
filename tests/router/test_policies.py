from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espalier.calls import Call
from espalier.errors import PluginError
from espalier.router.policies import LeastInFlight, RoundRobin, policies

CALL = Call(method="POST", path="/generate", target=b"/generate", headers=[], body=b"{}", request_id="r")


@dataclass
class Spot:
    ordinal: int
    in_flight: int = 0

    @property
    def url(self) -> str:
        return f"http://worker:{self.ordinal}"


def test_round_robin_rotates_strictly() -> None:
    policy, spots = RoundRobin(), [Spot(1), Spot(2), Spot(3)]
    assert [policy.choose(CALL, spots).ordinal for _ in range(7)] == [1, 2, 3, 1, 2, 3, 1]


def test_round_robin_neither_skips_nor_doubles_a_turn_when_a_worker_leaves() -> None:
    policy, spots = RoundRobin(), [Spot(1), Spot(2), Spot(3)]
    assert policy.choose(CALL, spots).ordinal == 1
    assert policy.choose(CALL, [spots[0], spots[2]]).ordinal == 3
    assert policy.choose(CALL, spots).ordinal == 1


@given(st.lists(st.sampled_from(["call", "join", "leave"]), max_size=200))
def test_round_robin_is_fair_between_any_two_workers_that_stay(steps: list[str]) -> None:
    policy, spots, joined = RoundRobin(), [Spot(1), Spot(2)], 2
    served: Counter[int] = Counter()
    for step in steps:
        if step == "join":
            joined += 1
            spots.append(Spot(joined))
        elif step == "leave" and len(spots) > 2:
            del spots[2]
        else:
            served[policy.choose(CALL, spots).ordinal] += 1
    assert abs(served[1] - served[2]) <= 1


def test_least_inflight_takes_the_idlest_and_rotates_ties() -> None:
    policy, spots = LeastInFlight(), [Spot(1, 1), Spot(2, 0), Spot(3, 0)]
    assert [policy.choose(CALL, spots).ordinal for _ in range(4)] == [2, 3, 2, 3]


def test_unknown_policy_names_the_known_ones() -> None:
    with pytest.raises(PluginError, match=r"unknown policy 'fastest': known are least_inflight, round_robin"):
        policies.resolve("fastest")
