"""What a rollout leaves over, and how the next one goes on with it.

A group that was cut off has samples at every stage: not begun, aborted within the response, finished, graded.
Given back to the data source, it is submitted again like any other; each sample goes on from where it is.

Invariant: a sample that is given back has all that was sampled for it and nothing else, so that the next
request reads exactly its tokens. Whoever resumes it appends, and each part keeps its own weight version.

Source: slime's `--partial-rollout`, which gives back what was cut off and discards complete groups beyond
the batch.
"""

from collections.abc import Iterable, Sequence
from typing import Final, Protocol, runtime_checkable

from ..errors import ConfigError
from .config import RolloutConfig
from .sample import FINISHED, Sample, Status

START_ROLLOUT_ID: Final = "start_rollout_id"
"""Metadata key of a sample that took more than one rollout: the first of them. The name is slime's."""


@runtime_checkable
class TakesBack(Protocol):
    """A data source with a buffer: what it is given, it hands out again before anything new."""

    def add_samples(self, samples: list[list[Sample]], /) -> None:
        """Keep these groups for a later `get_samples`."""
        ...


def leftover_groups(
    args: RolloutConfig,
    rollout_id: int,
    *,
    cut_off: Iterable[list[Sample]],
    surplus: Iterable[list[Sample]],
) -> list[list[Sample]]:
    """Return the groups to give back, by index, and note in their samples which rollout began them.

    `cut_off` are groups as they were submitted, `surplus` groups that are done. A group with a failed sample
    is not worth going on with. One that was fanned out is no group of prompts any more: it is discarded.
    """
    kept = [group for group in cut_off if _goes_on(args, group)]
    if args.keep_surplus_groups:
        kept += [group for group in surplus if len(group) == args.n_samples_per_prompt]
    for group in kept:
        for sample in group:
            if sample.response_length:
                sample.metadata.setdefault(START_ROLLOUT_ID, rollout_id)
    return sorted(kept, key=lambda group: group[0].index or 0)


def mask_earlier_tokens(args: RolloutConfig, sample: Sample) -> None:
    """Take what earlier rollouts sampled of the response out of training, where the settings say so."""
    if args.partial_rollout and args.mask_offpolicy_in_partial_rollout and sample.response_length:
        sample.loss_mask = [0] * sample.response_length


def check_takes_back(args: RolloutConfig, data_source: object) -> None:
    """Check that groups can be given back, where the settings ask for it.

    Raises: ConfigError where the data source has no buffer.
    """
    wanted = args.partial_rollout or args.keep_surplus_groups
    if wanted and not isinstance(data_source, TakesBack):
        flag = "--partial-rollout" if args.partial_rollout else "--keep-surplus-groups"
        raise ConfigError(
            f"{flag} needs a data source with add_samples(groups): {type(data_source).__name__} has none"
        )


def give_back(data_source: object, groups: list[list[Sample]]) -> None:
    """Hand `groups` to the data source; without any, nothing is asked of it."""
    if groups and isinstance(data_source, TakesBack):
        data_source.add_samples(groups)


def _goes_on(args: RolloutConfig, group: Sequence[Sample]) -> bool:
    if any(sample.status is Status.FAILED for sample in group):
        return False
    return args.partial_rollout or (
        args.keep_surplus_groups
        and all(sample.status in FINISHED and sample.reward is not None for sample in group)
    )
