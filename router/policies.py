"""The built-in load-balancing policies, by name."""

from collections.abc import Sequence

from ..calls import Call
from ..policies import CandidateT, Policy, PolicyFactory
from ..registry import Registry

policies: Registry[PolicyFactory] = Registry("policy")
"""Known policies; `policies.register("name")` adds one."""


@policies.register("round_robin")
class RoundRobin:
    """Strict rotation in the order that workers joined.

    What is remembered is the last worker's ordinal, not a position, so a worker that joins or leaves
    neither skips another's turn nor gives one twice.
    """

    def __init__(self) -> None:
        self._last_ordinal = 0

    def choose(self, call: Call, candidates: Sequence[CandidateT]) -> CandidateT:  # noqa: ARG002
        """Return the next worker after the last one chosen."""
        chosen = candidates[0]
        for candidate in candidates:
            if candidate.ordinal > self._last_ordinal:
                chosen = candidate
                break
        self._last_ordinal = chosen.ordinal
        return chosen


@policies.register("least_inflight")
class LeastInFlight:
    """The worker that holds the fewest calls; ties rotate, so that an idle fleet is used evenly."""

    def __init__(self) -> None:
        self._rotation = RoundRobin()

    def choose(self, call: Call, candidates: Sequence[CandidateT]) -> CandidateT:
        """Return the next worker among those with the fewest calls in flight."""
        fewest = min(candidate.in_flight for candidate in candidates)
        ties = [candidate for candidate in candidates if candidate.in_flight == fewest]
        return self._rotation.choose(call, ties)


_: type[Policy] = RoundRobin
__: type[Policy] = LeastInFlight
