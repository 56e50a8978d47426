import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espalier.errors import ConfigError
from espalier.policies import Policy
from espalier.router.policies import LeastInFlight, PowerOfTwo, RandomChoice, RoundRobin
from tests.router.policies.spots import CALL, Spot, call, ordinals, spots


def test_round_robin_rotates_strictly() -> None:
    assert ordinals(RoundRobin(), spots(3), 7) == [1, 2, 3, 1, 2, 3, 1]


def test_round_robin_neither_skips_nor_doubles_a_turn_when_a_worker_leaves() -> None:
    policy, (first, second, third) = RoundRobin(), spots(3)
    assert policy.choose(CALL, (first, second, third)) is first
    assert policy.choose(CALL, (first, third)) is third
    assert policy.choose(CALL, (first, second, third)) is first


@given(st.lists(st.sampled_from(["call", "join", "first_leaves", "last_leaves", "retry"]), max_size=200))
def test_round_robin_is_fair_to_within_one_between_any_two_that_stay(steps: list[str]) -> None:
    """Workers join behind, and leave before, between and behind the two that are compared."""
    policy, joined = RoundRobin(), 5
    routable = list(spots(joined))
    staying = routable[1], routable[3]
    served: Counter[int] = Counter()
    for step in steps:
        if step == "join":
            joined += 1
            routable.append(Spot(joined))
        elif step == "first_leaves":
            routable = [spot for spot in routable if spot.ordinal not in (1, 3)]
        elif step == "last_leaves" and routable[-1] not in staying:
            routable.pop()
        else:
            served[policy.choose(CALL, tuple(routable)).ordinal] += 1
        assert abs(served[2] - served[4]) <= 1


class Counted(Sequence[Spot]):
    """Counts how often somebody looks at a worker."""

    def __init__(self, all_spots: Sequence[Spot]) -> None:
        self._spots = all_spots
        self.looks = 0

    def __len__(self) -> int:
        return len(self._spots)

    def __getitem__(self, at: int) -> Spot:  # type: ignore[override]
        self.looks += 1
        return self._spots[at]


def test_turn_costs_the_same_with_many_workers() -> None:
    policy, many = RoundRobin(), Counted(spots(1024))
    ordinals(policy, many, 10_240)
    assert many.looks < 10_240 * 2.1


def test_random_gives_each_worker_its_share() -> None:
    served = Counter(ordinals(RandomChoice(seed=1), spots(4), 10_000))
    assert sorted(served) == [1, 2, 3, 4]
    assert max(served.values()) < 1.1 * min(served.values())


@pytest.mark.parametrize("kind", [RandomChoice, PowerOfTwo])
def test_draws_repeat_with_a_seed_and_only_with_it(kind: type[RandomChoice]) -> None:
    def draws(seed: int | None) -> list[int]:
        return ordinals(kind(seed=seed), spots(8), 50)

    assert draws(7) == draws(7)
    assert draws(7) != draws(8)
    assert draws(None) != draws(None)


def test_least_inflight_takes_the_idlest_and_rotates_ties() -> None:
    assert ordinals(LeastInFlight(), spots(4, [1, 0, 0, 0]), 6) == [2, 3, 4, 2, 3, 4]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=20), st.integers(1, 40))
def test_least_inflight_never_takes_one_that_holds_more_than_another(loads: list[int], times: int) -> None:
    for kind in (LeastInFlight(), LeastInFlight(ties="checksum")):
        workers = spots(len(loads), loads)
        for _ in range(times):
            chosen = kind.choose(CALL, workers)
            assert chosen.in_flight == min(spot.in_flight for spot in workers)
            chosen.in_flight += 1


def test_ties_by_checksum_depend_on_the_body_and_the_urls_alone() -> None:
    """Workers that joined in another order are still the same workers."""
    bodies = [call(b"%d" % number) for number in range(200)]
    ascending = tuple(Spot(ordinal, host=host) for ordinal, host in enumerate("abcd"))
    descending = tuple(Spot(ordinal, host=host) for ordinal, host in enumerate("dcba"))
    first = [LeastInFlight(ties="checksum").choose(each, ascending).host for each in bodies]
    policy = LeastInFlight(ties="checksum")
    assert [policy.choose(each, descending).host for each in bodies] == first
    assert min(Counter(first).values()) > 25


def test_power_of_two_takes_the_less_busy_of_two_different_ones() -> None:
    assert set(ordinals(PowerOfTwo(), spots(2, [5, 4]), 100)) == {2}
    assert set(ordinals(PowerOfTwo(), spots(3), 100)) == {1, 2, 3}
    assert ordinals(PowerOfTwo(), spots(1), 2) == [1, 1]


def fullest(policy: Policy, workers: int, calls: int) -> int:
    """Return the load of the fullest worker when nothing ends."""
    candidates = spots(workers)
    for _ in range(calls):
        policy.choose(CALL, candidates).in_flight += 1
    return max(spot.in_flight for spot in candidates)


@pytest.mark.parametrize("seed", range(3))
def test_power_of_two_stays_close_to_the_mean_where_random_does_not(seed: int) -> None:
    """Theory: the fullest of n bins is log log n above the mean, against the square root of the mean."""
    mean = 10_000 / 100
    assert fullest(PowerOfTwo(seed=seed), 100, 10_000) <= mean + 5
    assert fullest(RandomChoice(seed=seed), 100, 10_000) >= mean + 15
    assert fullest(LeastInFlight(), 100, 10_000) == mean


def test_loads_stay_even_while_calls_end_in_any_order() -> None:
    rng, policy, workers = random.Random(1), LeastInFlight(), spots(8)
    running: list[Spot] = []
    for _ in range(5_000):
        chosen = policy.choose(CALL, workers)
        chosen.in_flight += 1
        running.append(chosen)
        if len(running) > 64:
            running.pop(rng.randrange(len(running))).in_flight -= 1
    assert max(spot.in_flight for spot in workers) - min(spot.in_flight for spot in workers) <= 3


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (LeastInFlight, {"ties": "coin"}, "ties=coin: expected rotate or checksum"),
        (RandomChoice, {"seed": "x"}, "seed=x: expected a whole number, 0 or more"),
        (PowerOfTwo, {"seed": True}, "seed=True: expected a whole number, 0 or more"),
        (PowerOfTwo, {"seed": -1}, "seed=-1: expected a whole number, 0 or more"),
    ],
)
def test_options_that_do_not_fit_are_told(kind: type, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        kind(**options)
