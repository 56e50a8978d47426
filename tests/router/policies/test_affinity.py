import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.errors import ConfigError
from espalier.router.policies import PrefixAffinity
from espalier.router.policies.affinity import PromptPlaces
from tests.router.policies.spots import CALL, Spot, call, generate, ordinals, spots

SYSTEM = "You are a careful solver of problems. " * 50


def lease(policy: PrefixAffinity, prompt: str | list[int], candidates: tuple[Spot, ...]) -> Spot:
    chosen = policy.choose(generate(prompt), candidates)
    chosen.in_flight += 1
    return chosen


@pytest.mark.parametrize(("one", "two"), [("What is 7 + 2?", "What is 7 + 3?"), ([1, 2, 3], [1, 2, 33])])
def test_samples_of_a_group_go_together_and_groups_apart(one: str | list[int], two: str | list[int]) -> None:
    policy, workers = PrefixAffinity(), spots(4)
    first = {lease(policy, one, workers).ordinal for _ in range(8)}
    other = {lease(policy, two, workers).ordinal for _ in range(8)}
    assert len(first) == len(other) == 1
    assert first != other


def test_turns_of_a_trajectory_stay_together_while_the_prompt_grows() -> None:
    policy, workers, rng = PrefixAffinity(), spots(8), random.Random(1)
    prompt = [1, 2, 3]
    home = lease(policy, prompt, workers)
    for turn in range(20):
        lease(policy, [turn, 9, 9], workers)
        prompt = prompt + [rng.randrange(100_000) for _ in range(200)]
        assert policy.choose(generate(prompt), workers) is home


def test_chat_turns_stay_together() -> None:
    policy, workers = PrefixAffinity(), spots(8)
    begun = b'{"messages":[{"role":"user","content":"a"}'
    home = policy.choose(call(begun + b"]}", path="/v1/chat/completions"), workers)
    home.in_flight = 5
    more = begun + b',{"role":"assistant","content":"b"},{"role":"user","content":"c"}]}'
    assert policy.choose(call(more, path="/v1/chat/completions"), workers) is home


def test_system_prompt_that_all_share_herds_nobody() -> None:
    policy, workers = PrefixAffinity(), spots(8)
    for number in range(64):
        lease(policy, f"{SYSTEM}Question {number}.", workers)
    assert [spot.in_flight for spot in workers] == [8] * 8


def test_idle_workers_take_new_prompts_in_turn() -> None:
    policy, workers = PrefixAffinity(), spots(4)
    chosen = [policy.choose(generate(f"{number}: go"), workers).ordinal for number in range(8)]
    assert chosen == [1, 2, 3, 4, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("load", "least", "stays"),
    [(10, 0, True), (11, 0, False), (40, 20, True), (41, 20, False), (24, 13, True)],
)
def test_worker_is_let_go_of_only_when_over_both_thresholds(load: int, least: int, stays: bool) -> None:
    policy = PrefixAffinity(balance_abs_threshold=10, balance_rel_threshold=2.0)
    home, other = workers = spots(2)
    assert policy.choose(generate("a"), workers) is home
    home.in_flight, other.in_flight = load, least
    assert (policy.choose(generate("a"), workers) is home) is stays


def test_overload_of_one_worker_does_not_cost_the_others_their_affinity() -> None:
    policy, workers = PrefixAffinity(balance_abs_threshold=4), spots(3)
    homes = [lease(policy, prompt, workers) for prompt in ("a", "b", "c")]
    homes[0].in_flight = 100
    homes[1].in_flight = 4
    assert policy.choose(generate("b, and on"), workers) is homes[1]
    assert policy.choose(generate("a, and on"), workers) is not homes[0]


def test_prompt_that_was_let_go_of_has_two_homes_and_goes_to_the_less_busy() -> None:
    policy, workers = PrefixAffinity(balance_abs_threshold=2), spots(4)
    served = [lease(policy, "a", workers).ordinal for _ in range(8)]
    assert served[:3] == [1, 1, 1]
    assert served[3:6] == [2, 2, 2]
    assert set(served) == {1, 2, 3}


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=150), st.integers(0, 8))
def test_affinity_never_brings_a_worker_out_of_balance(steps: list[tuple[int, bool]], bound: int) -> None:
    policy, workers = PrefixAffinity(balance_abs_threshold=bound, balance_rel_threshold=1.5), spots(3)
    running: list[Spot] = []
    for group, ends in steps:
        if ends and running:
            running.pop().in_flight -= 1
            continue
        least = min(spot.in_flight for spot in workers)
        chosen = policy.choose(generate(f"group {group}"), workers)
        assert (
            chosen.in_flight == least or chosen.in_flight - least <= bound or chosen.in_flight <= 1.5 * least
        )
        chosen.in_flight += 1
        running.append(chosen)


def test_worker_that_has_left_is_not_asked_and_what_it_held_finds_another_home() -> None:
    policy, workers = PrefixAffinity(), spots(3)
    home = lease(policy, "a", workers)
    rest = tuple(spot for spot in workers if spot is not home)
    second = policy.choose(generate("a"), rest)
    assert second in rest
    second.in_flight = 3
    assert policy.choose(generate("a and on"), rest) is second


@pytest.mark.parametrize("body", [b"", b"{}", b'{"text": 5}', b'{"text": "broken', b"\xff", b"[1, 2]"])
def test_body_without_a_prompt_goes_to_the_least_busy_in_turn(body: bytes) -> None:
    assert ordinals(PrefixAffinity(), spots(3, [1]), 4, call(body)) == [2, 3, 2, 3]


def test_ties_of_new_prompts_can_be_broken_by_checksum() -> None:
    prompts = [generate(f"{number}") for number in range(50)]
    runs = [[policy.choose(each, spots(4)).ordinal for each in prompts] for policy in two_by_checksum()]
    assert runs[0] == runs[1]
    assert len(set(runs[0])) == 4


def two_by_checksum() -> Iterator[PrefixAffinity]:
    for warmed_up in (False, True):
        policy = PrefixAffinity(ties="checksum")
        if warmed_up:
            policy.choose(CALL, spots(4))
        yield policy


def test_memory_stays_bounded_however_many_prompts_come() -> None:
    """The prompts used last are the ones that are kept."""
    places, budget = PromptPlaces(max_bytes=100_000), 100_000
    keep, homed = b"the one that is used again and again", 7
    for number in range(200_000):
        prompt = b"%d,%d," % (number % 1_000, number)
        places.add(prompt, places.match(prompt), number)
        if number % 20 == 0:
            places.add(keep, places.match(keep), homed)
    assert places.size_bytes <= budget
    assert 50 < len(places) <= 100
    assert [list(holders) for holders in places.holders(places.match(keep + b" and on"))] == [[homed]]
    assert not list(places.holders(places.match(b"1,1,")))


def test_prompt_larger_than_the_budget_is_chosen_for_but_not_kept() -> None:
    policy, workers = PrefixAffinity(max_index_bytes=2_000), spots(2)
    assert ordinals(policy, workers, 4, generate("x" * 10_000)) == [1, 2, 1, 2]
    assert ordinals(policy, workers, 3, generate("x")) == [1, 1, 1]


@given(st.lists(st.text("ab", min_size=1, max_size=6), max_size=60))
def test_places_agree_with_a_table_of_all_prompts(prompts: list[str]) -> None:
    """The oracle looks through every earlier prompt."""
    places, table = PromptPlaces(max_bytes=1 << 30), dict[bytes, list[int]]()
    for number, text in enumerate(prompts):
        prompt = text.encode()
        match = places.match(prompt)
        earlier = [prompt[:size] for size in range(len(prompt), 0, -1) if prompt[:size] in table]
        assert [list(holders) for holders in places.holders(match)] == [table[each] for each in earlier]
        places.add(prompt, match, number % 3)
        homes = table.setdefault(prompt, [])
        if number % 3 in homes:
            homes.remove(number % 3)
        homes.append(number % 3)
    assert len(places) == sum(map(len, table.values()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"balance_abs_threshold": -1}, "balance_abs_threshold=-1: expected a whole number, 0 or more"),
        ({"balance_rel_threshold": 0.5}, "balance_rel_threshold=0.5: expected a number, 1 or more"),
        ({"balance_rel_threshold": float("nan")}, "balance_rel_threshold=nan: expected a number"),
        ({"max_index_bytes": "many"}, "max_index_bytes=many: expected a whole number, 1 or more"),
        ({"ties": 3}, "ties=3: expected rotate or checksum"),
    ],
)
def test_options_that_do_not_fit_are_told(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PrefixAffinity(**options)  # type: ignore[arg-type]
