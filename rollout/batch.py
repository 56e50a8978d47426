"""Which groups make the batch. Pure: the loop tells it what happened, it tells what to do.

In order of arrival, a group is decided on as it is done, and the batch is complete with the first `target`
that are kept. In order of submission, a group is decided on when all that were submitted before it are: the
batch, and how many groups were ever submitted, are then a function of the verdicts alone.
"""

from collections import Counter
from dataclasses import dataclass, field

from .sample import Sample


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a group came to: its samples, and why it is dropped (None: it is kept)."""

    samples: list[Sample]
    drop_reason: str | None = None
    by_filter: bool = False
    """the dynamic filter dropped it; else its samples could not be had"""
    problem: str | None = None
    """what went wrong, in words; None where the filter dropped it"""
    keep_when_insufficient: bool = False
    """keep it all the same where dropping it would mean to submit more groups"""


@dataclass(slots=True, kw_only=True)
class Batch:
    """Collects verdicts until `target` groups are kept."""

    target: int
    """groups"""

    in_order: bool = False
    """decide in order of submission"""

    kept: list[list[Sample]] = field(default_factory=list)
    """the batch so far"""

    dropped: Counter[str] = field(default_factory=Counter)
    """groups decided against, by reason"""

    failed: Counter[str] = field(default_factory=Counter)
    """those of them that no filter dropped: their samples could not be had"""

    last_problem: str | None = None
    """what went wrong last, in words"""

    dropped_in_a_row: int = 0
    """groups found bad since the last one that was found good, in order of arrival"""

    surplus: list[list[Sample]] = field(default_factory=list)
    """groups that were good, and done after the batch was complete"""

    submitted: int = 0
    """groups so far"""

    groups_per_submission: int | None = None
    """groups in the first submission, and so in the others"""

    _waiting: dict[int, Verdict] = field(default_factory=dict)
    _decided: int = 0

    @property
    def is_complete(self) -> bool:
        """Tell whether the batch needs no more groups."""
        return len(self.kept) >= self.target

    @property
    def needs_submission(self) -> bool:
        """Tell whether too few groups are left to complete the batch even if all are kept."""
        return self.submitted - self.reasons.total() < self.target

    @property
    def reasons(self) -> Counter[str]:
        """Return the bad groups by reason, those that are not decided on yet and cannot be kept included."""
        waiting = Counter(
            v.drop_reason
            for v in self._waiting.values()
            if v.drop_reason is not None and not v.keep_when_insufficient
        )
        return self.dropped + waiting

    def submit(self, groups: int) -> range:
        """Note that so many groups are under way; return their positions."""
        self.groups_per_submission = self.groups_per_submission or groups
        positions = range(self.submitted, self.submitted + groups)
        self.submitted += groups
        return positions

    def settle(self, position: int, verdict: Verdict) -> list[Verdict]:
        """Note the verdict on the group at `position`; return the verdicts that count from now on."""
        self.last_problem = verdict.problem or self.last_problem
        self.dropped_in_a_row = 0 if verdict.drop_reason is None else self.dropped_in_a_row + 1
        if not self.in_order:
            decided = self._decide(verdict)
            return [decided] if decided is not None else []
        self._waiting[position] = verdict
        counted = []
        while self._decided in self._waiting and not self.is_complete:
            following = self._waiting.pop(self._decided)
            self._decided += 1
            decided = self._decide(following)
            assert decided is not None  # the batch was not complete
            counted.append(decided)
        return counted

    def forgive(self) -> None:
        """Forget how many groups were bad in a row: it was not their fault."""
        self.dropped_in_a_row = 0

    def close(self) -> None:
        """Note which of the groups that are done are good and not in the batch."""
        self.surplus += [v.samples for _, v in sorted(self._waiting.items()) if v.drop_reason is None]
        self._waiting.clear()

    def _has_spare(self) -> bool:
        """Tell whether a group can be dropped without that more have to be submitted.

        In order of submission the answer must not depend on how early replacements were sent out: they
        count from when the decisions so far make them necessary.
        """
        needed = self.target + self.dropped.total()
        if not self.in_order:
            return self.submitted > needed
        return needed % (self.groups_per_submission or 1) != 0

    def _decide(self, verdict: Verdict) -> Verdict | None:
        """Return the verdict as it counts, or None where it comes too late to count."""
        reason = verdict.drop_reason
        if reason is not None and (not verdict.keep_when_insufficient or self._has_spare()):
            self.dropped[reason] += 1
            self.failed[reason] += not verdict.by_filter
            return verdict
        if self.is_complete:
            self.surplus.append(verdict.samples)
            return None
        self.kept.append(verdict.samples)
        return Verdict(verdict.samples)
