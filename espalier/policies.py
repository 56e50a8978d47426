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
    """Chooses a worker for a call.

    It is asked once for every attempt of every call, on the event loop: it must not wait, and it should take
    microseconds. What it keeps must be bounded.
    """

    def choose(self, call: Call, candidates: Sequence[CandidateT]) -> CandidateT:
        """Return one of `candidates`: the routable workers, by ascending ordinal, never empty.

        It must not raise, whatever the call holds. A tuple of candidates is handed over again as long as
        nothing about it changes but the workers' loads.
        """
        ...


PolicyFactory = Callable[..., Policy]
"""Makes a policy; keyword arguments are its options."""
