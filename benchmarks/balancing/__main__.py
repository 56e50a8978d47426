"""What each policy is worth on a GRPO rollout: prefix-cache hits, makespan, queueing and balance.

usage: python -m benchmarks.balancing [--seeds 5] [--scenario NAME ...] [--policy NAME ...] [--groups N]

Everything happens in virtual time and in one process; the policies are the router's own, and the figures of a
seed are the same on every machine. A table's figures are medians over the seeds, with the makespan's range.
"""

import argparse
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from espalier.calls import Call
from espalier.policies import Policy
from espalier.router.policies import (
    ConsistentHashing,
    Deterministic,
    LeastInFlight,
    PowerOfTwo,
    PrefixAffinity,
    RandomChoice,
    RoundRobin,
)

from .cache_aware_rule import CacheAwareRule
from .fleet_model import Account, ModelWorker, Timeline, Work, WorkerSpeed
from .grpo_load import LoadShape, Trajectory, make_load, shareable


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A load on a fleet. The client keeps a fixed number of samples going, as rollout engines do."""

    tells: str
    shape: LoadShape = field(default_factory=LoadShape)
    speeds: tuple[WorkerSpeed, ...] = (WorkerSpeed(),) * 8
    joins_after_s: float | None = None
    """When the last of the workers joins; None where all are there from the beginning."""
    samples_at_once: int = 512

    def shrunk(self, groups: int) -> "Scenario":
        """Return the same with other numbers of groups, and as many of them at once, in proportion."""
        at_once = self.samples_at_once * groups // self.shape.groups
        return replace(self, shape=replace(self.shape, groups=groups), samples_at_once=at_once)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What came out of one run, or the medians of several."""

    hit_rate: float
    makespan_s: float
    p99_wait_s: float
    imbalance: float
    """The fullest worker's calls in flight against the mean of all, each averaged over time."""


SCENARIOS: Final = {
    "multi-turn": Scenario(tells="8 equal workers, up to 6 turns"),
    "single-turn": Scenario(tells="one turn a sample", shape=LoadShape(groups=400, max_turns=1)),
    "small cache": Scenario(tells="a quarter of the cache", speeds=(WorkerSpeed(cache_tokens=131_072),) * 8),
    "joins": Scenario(tells="the eighth worker joins after 20 s", joins_after_s=20.0),
    "slow worker": Scenario(
        tells="one of the workers at half speed", speeds=(WorkerSpeed(slowdown=2.0),) + (WorkerSpeed(),) * 7
    ),
    "stragglers": Scenario(
        tells="one sample in 50 ends with 16,384 tokens",
        shape=LoadShape(straggler_probability=0.02, max_output=16_384),
    ),
}

POLICIES: Final[dict[str, Callable[[int], Policy]]] = {
    "round_robin": lambda _: RoundRobin(),
    "random": lambda seed: RandomChoice(seed=seed),
    "least_inflight": lambda _: LeastInFlight(),
    "power_of_two": lambda seed: PowerOfTwo(seed=seed),
    "deterministic": lambda _: Deterministic(),
    "consistent_hashing": lambda _: ConsistentHashing(),
    "consistent_hashing max_load_factor=1.25": lambda _: ConsistentHashing(max_load_factor=1.25),
    "prefix_affinity": lambda _: PrefixAffinity(),
    "prefix_affinity abs=10 rel=1.2": lambda _: PrefixAffinity(
        balance_abs_threshold=10, balance_rel_threshold=1.2
    ),
    "prefix_affinity abs=5 rel=1.2": lambda _: PrefixAffinity(
        balance_abs_threshold=5, balance_rel_threshold=1.2
    ),
    "prefix_affinity abs=0 rel=1.0": lambda _: PrefixAffinity(
        balance_abs_threshold=0, balance_rel_threshold=1.0
    ),
    "SGLang's rule": lambda _: CacheAwareRule(),
    "SGLang's rule abs=10 rel=1.2": lambda _: CacheAwareRule(
        balance_abs_threshold=10, balance_rel_threshold=1.2
    ),
}


class Rollout:
    """Runs a load through a policy, from the first sample's start to the last one's end."""

    def __init__(self, scenario: Scenario, policy: Policy, seed: int) -> None:
        self._policy = policy
        self._scenario = scenario
        self._timeline = Timeline()
        self._account = Account()
        self._workers: tuple[ModelWorker, ...] = ()
        self._left = deque(make_load(scenario.shape, seed))
        self._mean_calls_s = 0.0
        self._most_calls_s = 0.0

    def run(self) -> Figures:
        """Return what came out."""
        late = self._scenario.joins_after_s
        first = self._scenario.speeds if late is None else self._scenario.speeds[:-1]
        for speed in first:
            self._join(speed)
        if late is not None:
            self._timeline.after(late, lambda: self._join(self._scenario.speeds[-1]))
        for _ in range(self._scenario.samples_at_once):
            self._start_next()
        self._timeline.run(self._watch)
        account = self._account
        return Figures(
            hit_rate=account.known_blocks / account.prompt_blocks,
            makespan_s=self._timeline.now_s,
            p99_wait_s=statistics.quantiles(account.waits_s, n=100)[98],
            imbalance=self._most_calls_s / self._mean_calls_s,
        )

    def _join(self, speed: WorkerSpeed) -> None:
        worker = ModelWorker(len(self._workers) + 1, speed, self._timeline, self._account)
        self._workers = (*self._workers, worker)

    def _start_next(self) -> None:
        if self._left:
            sample = self._left.popleft()
            self._ask(sample, 0, sample.prompt)

    def _ask(self, sample: Trajectory, at: int, prompt: Sequence[int]) -> None:
        worker = self._policy.choose(_generate(prompt, sample.session), self._workers)
        worker.submit(
            Work(
                prompt=prompt,
                output=sample.turns[at].output,
                arrived_s=self._timeline.now_s,
                on_end=lambda: self._answered(sample, at, prompt),
            )
        )

    def _answered(self, sample: Trajectory, at: int, prompt: Sequence[int]) -> None:
        turn = sample.turns[at]
        if at + 1 == len(sample.turns):
            self._start_next()
            return
        longer = [*prompt, *turn.output, *turn.observation]
        self._timeline.after(turn.tool_s, lambda: self._ask(sample, at + 1, longer))

    def _watch(self, passed_s: float) -> None:
        loads = [worker.in_flight for worker in self._workers]
        self._most_calls_s += passed_s * max(loads)
        self._mean_calls_s += passed_s * sum(loads) / len(loads)


def _generate(prompt: Sequence[int], session: str) -> Call:
    """Return the call as a client sends it. One id stands for a whole block of tokens."""
    ids = b",".join(b"%d" % block for block in prompt)
    return Call(
        method="POST",
        path="/generate",
        target=b"/generate",
        headers=[(b"x-smg-routing-key", session.encode())],
        body=b'{"input_ids":[%s],"sampling_params":{"temperature":1.0}}' % ids,
        request_id=session,
    )


def medians(runs: Sequence[Figures]) -> Figures:
    """Return the median of each figure."""
    return Figures(
        hit_rate=statistics.median(run.hit_rate for run in runs),
        makespan_s=statistics.median(run.makespan_s for run in runs),
        p99_wait_s=statistics.median(run.p99_wait_s for run in runs),
        imbalance=statistics.median(run.imbalance for run in runs),
    )


def main() -> None:
    """Print a table for each scenario."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="runs of each policy (default: 5)")
    parser.add_argument("--scenario", nargs="*", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--policy", nargs="*", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--groups", type=int, help="fewer groups than the scenario has, for a quick look")
    options = parser.parse_args()
    for name in options.scenario:
        scenario = SCENARIOS[name]
        if options.groups is not None:
            scenario = scenario.shrunk(options.groups)
        best = statistics.median(shareable(make_load(scenario.shape, seed)) for seed in range(options.seeds))
        print(f"### {name}: {scenario.tells}; one endless cache would hit {best:.1%}\n")
        print("| policy | prefix-cache hits | makespan | p99 wait | imbalance |")
        print("|---|---|---|---|---|")
        for policy in options.policy:
            runs = [Rollout(scenario, POLICIES[policy](seed), seed).run() for seed in range(options.seeds)]
            one = medians(runs)
            spans_s = [run.makespan_s for run in runs]
            print(
                f"| {policy} | {one.hit_rate:.1%} | {one.makespan_s:.0f} s "
                f"({min(spans_s):.0f} to {max(spans_s):.0f}) | {one.p99_wait_s:.2f} s "
                f"| {one.imbalance:.2f} |",
                flush=True,
            )
        print()


if __name__ == "__main__":
    main()
