"""The contract of a load-balancing policy. The built-in ones live in `espalier.router.policies`."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from .calls import Call


class Candidate(Protocol):
    """What a policy may know of a worker."""

    @property
    def url(self) -> str:
        """The worker's URL, as it was added."""
        ...

    @property
    def ordinal(self) -> int:
        """Grows with every worker added; never used twice."""
        ...

    @property
    def in_flight(self) -> int:
        """Calls that the worker holds now."""
        ...


CandidateT = TypeVar("CandidateT", bound=Candidate)


class Policy(Protocol):
    """Chooses a worker for a call."""

    def choose(self, call: Call, candidates: Sequence[CandidateT]) -> CandidateT:
        """Return one of `candidates`: the routable workers, by ascending ordinal, never empty."""
        ...


PolicyFactory = Callable[[], Policy]
