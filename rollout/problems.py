"""What can go wrong with a sample, and the short name under which it is counted.

RolloutError               generate_failed      whatever has no name of its own
├── Refused                refused              the router or a worker answered 4xx
├── BadReply               bad_reply            a reply lacks what it must have
├── TokensDiffer           token_mismatch       what was recorded, sent and sampled do not agree
├── NotRecorded            not_recorded         the radix tree holds the tokens no longer
├── GenerateTimeout        generate_timeout     a generate function does not come to an end
├── BadImage               bad_image            a picture is missing, or is none
├── RewardFailed           reward_failed        a reward is missing or no number
│   └── RewardTimeout      reward_timeout
├── PluginCancelled        plugin_cancelled     a plug-in ended itself with CancelledError
└── Unsavable              unsavable            a value that JSON cannot hold
HttpError                  its own code         upstream_error, upstream_timeout, …
├── RouterUnreachable      router_unreachable   no connection to the router
└── RouterUnavailable      ends the rollout     there is nothing to talk to

A class is added when a person would do something else about it.
"""

import traceback
from pathlib import Path
from typing import ClassVar

from ..errors import HttpError, NoWorkerAvailable, RolloutError, UpstreamError


class Refused(RolloutError):
    """The router or a worker answered 4xx; `status` is which."""

    code: ClassVar[str] = "refused"

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class BadReply(RolloutError):
    """A reply does not hold what it must."""

    code: ClassVar[str] = "bad_reply"


class TokensDiffer(RolloutError):
    """The tokens that were sent, sampled and recorded do not agree."""

    code: ClassVar[str] = "token_mismatch"


class NotRecorded(RolloutError):
    """The radix tree does not hold what was sampled a moment ago."""

    code: ClassVar[str] = "not_recorded"


class GenerateTimeout(RolloutError):
    """A generate function took longer than `generate_timeout_s`."""

    code: ClassVar[str] = "generate_timeout"


class BadImage(RolloutError):
    """A picture cannot be read, or is none."""

    code: ClassVar[str] = "bad_image"


class RewardFailed(RolloutError):
    """A reward could not be had, or is no finite number."""

    code: ClassVar[str] = "reward_failed"


class RewardTimeout(RewardFailed):
    """A reward took longer than `reward_timeout_s`, or earlier calls of it never came back."""

    code: ClassVar[str] = "reward_timeout"


class PluginCancelled(RolloutError):
    """A plug-in raised CancelledError though nobody had cancelled it."""

    code: ClassVar[str] = "plugin_cancelled"


class Unsavable(RolloutError):
    """A sample holds a value that cannot be written as JSON."""

    code: ClassVar[str] = "unsavable"


class RouterUnreachable(UpstreamError):
    """No connection to the router could be made."""

    code = "router_unreachable"


class RouterUnavailable(NoWorkerAvailable):
    """For longer than `router_patience_s` there was no router to reach, or no worker behind it.

    No sample is to blame: it ends the rollout instead of one group after the other.
    """

    code = "router_unavailable"


def reason_of(error: BaseException) -> str:
    """Return the words to record for `error`; of one that is not ours, also where it was raised."""
    if isinstance(error, HttpError | RolloutError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__, limit=-1)
    places = [f" ({Path(frame.filename).name}, line {frame.lineno}, in {frame.name})" for frame in frames]
    return f"{type(error).__name__}: {error}{''.join(places)}"


def code_of(error: BaseException) -> str:
    """Return the name under which `error` is counted: one for each class."""
    if isinstance(error, HttpError):
        return error.code
    if isinstance(error, RolloutError):
        return str(getattr(error, "code", "generate_failed"))
    return f"raised_{type(error).__name__}"
