"""What a group came to: kept, rejected by the dynamic filter, or lost, each under a name to count it by."""

from typing import Final

from ..errors import ConfigError
from .batch import Verdict
from .filters import call_dynamic_filter, flattened
from .problems import RouterUnavailable, code_of, reason_of
from .sample import Status
from .state import GroupTask, RolloutState

ABORTED: Final = "aborted"
"""Drop reason of a group that somebody else aborted: there is nothing wrong with it."""

_UNUSABLE: Final = {Status.FAILED: "failed", Status.ABORTED: ABORTED, Status.PENDING: "unfinished"}
"""Why a group with such a sample is dropped: it has no reward to compare. A failed one may know better."""


def verdict_of(state: RolloutState, task: GroupTask) -> Verdict:
    """Return the verdict on the group of `task`, which is done.

    Raises: ConfigError where a plug-in is at fault; RouterUnavailable, of which no group is guilty.
    """
    try:
        samples = flattened(task.result())
    except (ConfigError, RouterUnavailable):
        raise
    except Exception as error:  # noqa: BLE001  one group's trouble is not the rollout's
        return Verdict([], code_of(error), problem=reason_of(error))
    for status, reason in _UNUSABLE.items():
        found = next((sample for sample in samples if sample.status is status), None)
        if found is not None:
            return Verdict(
                samples,
                str(found.metadata.get("error_code", reason)) if status is Status.FAILED else reason,
                problem=found.metadata.get("error"),
            )
    try:
        output = call_dynamic_filter(state.plugins.dynamic_filter, state.args, samples)
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001  a plug-in's; it becomes the group's
        return Verdict(samples, "filter_raised", problem=reason_of(error))
    if output.keep:
        return Verdict(samples)
    return Verdict(
        samples,
        output.reason or "unspecified",
        by_filter=True,
        keep_when_insufficient=output.keep_when_insufficient,
    )
