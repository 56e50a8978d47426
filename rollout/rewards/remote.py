"""The `remote` reward: asks a grader over HTTP.

The grader gets `{"prompt", "response", "label"}` and answers with the reward as JSON: a number, or an object
for `reward_key`.
"""

from typing import Any, Final

import msgspec

from ..config import RolloutConfig
from ..problems import RewardFailed
from ..sample import Sample
from .grader import ask_grader
from .hub import RewardValue, rewards

MAX_REPLY_BYTES: Final = 1 << 20
"""A reward is short; more than this is something else."""


async def remote_reward(args: RolloutConfig, sample: Sample) -> RewardValue:
    """Return what the grader at `rm_url` answers for the sample.

    Raises: RewardFailed where no `rm_url` is set, the grader refuses, keeps failing, or answers no JSON.
    """
    if args.rm_url is None:
        raise RewardFailed("the reward 'remote' needs --rm-url, the URL of a grader")
    try:
        body = msgspec.json.encode(
            {"prompt": sample.prompt, "response": sample.response, "label": sample.label}
        )
    except TypeError as error:
        raise RewardFailed(f"the grader cannot be sent the label: {error}") from None
    return _decoded(await ask_grader(args.rm_url, body, max_reply_bytes=MAX_REPLY_BYTES))


rewards.register("remote")(remote_reward)
rewards.register("remote_rm")(remote_reward)  # slime's name


def _decoded(reply: bytes) -> RewardValue:
    try:
        value: Any = msgspec.json.decode(reply)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise RewardFailed(f"the grader answered what is not JSON: {reply[:100]!r}") from None
    reward: RewardValue = value  # checked with every other reward
    return reward
