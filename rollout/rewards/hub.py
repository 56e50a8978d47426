"""The registry of rewards, and the two calls that give samples theirs."""

import asyncio
import copy
import functools
import inspect
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias, TypeVar

from ...registry import Registry
from ..config import RolloutConfig
from ..deadline import deadline
from ..problems import RewardFailed, RewardTimeout
from ..sample import Sample
from ..threads import in_thread, thread_slot
from .boxed import last_boxed

RewardValue: TypeAlias = float | dict[str, Any]
"""A number, or a dict of which `reward_key` names the number."""

Reward: TypeAlias = Callable[[RolloutConfig, Sample], Awaitable[RewardValue] | RewardValue]
"""`f(args, sample)`, plain or async."""

GroupReward: TypeAlias = Callable[
    [RolloutConfig, list[Sample]], Awaitable[Sequence[RewardValue]] | Sequence[RewardValue]
]
"""`f(args, samples)`, plain or async: one reward for each sample, in order."""

BOXED: Final = "boxed_"
"""Before a reward's name: grade what is in the box."""


def _reward(args: RolloutConfig, sample: Sample) -> object: ...


def _group_reward(args: RolloutConfig, samples: list[Sample]) -> object: ...


class RewardRegistry(Registry[Reward]):
    """Rewards by name, and each of them as `boxed_NAME`, which grades the last box of a response alone."""

    def resolve(self, spec: str) -> Reward:
        """Return the reward that `spec` names.

        Raises: PluginError as `Registry.resolve`.
        """
        if spec.startswith(BOXED) and spec not in self.names():
            return boxed(super().resolve(spec.removeprefix(BOXED)))
        return super().resolve(spec)


rewards = RewardRegistry("reward", expects=_reward)
"""Rewards of one sample."""

group_rewards: Registry[GroupReward] = Registry("group reward", expects=_group_reward)
"""Rewards of a whole group, for `group_rm`."""

LabelCheck: TypeAlias = Callable[[object], str | None]
"""`f(label)`: what is wrong with a label, in words, or None."""

_RewardT = TypeVar("_RewardT", bound=Callable[..., object])


def checks_labels(check: LabelCheck) -> Callable[[_RewardT], _RewardT]:
    """Return a decorator for rewards that need labels: every label is checked before any work is done."""

    def decorate(reward: _RewardT) -> _RewardT:
        reward.label_check = check  # type: ignore[attr-defined]  # read back below
        return reward

    return decorate


def keeps_time(reward: _RewardT) -> _RewardT:
    """Mark a reward that bounds its own time, so that `reward_timeout_s` does not.

    For those that wait for one of a few processes: the wait is no fault of the sample.
    """
    reward.keeps_time = True  # type: ignore[attr-defined]  # read back below
    return reward


def takes_answer_as(form: str) -> Callable[[_RewardT], _RewardT]:
    """Return a decorator for rewards that look for the answer in a response: `form` is one that holds it.

    `boxed_NAME` gives such a reward what was in the box as `form.format(answer)`.
    """

    def decorate(reward: _RewardT) -> _RewardT:
        reward.answer_form = form  # type: ignore[attr-defined]  # read back below
        return reward

    return decorate


def boxed(reward: Reward) -> Reward:
    r"""Return the reward that grades what stands in the last `\boxed{…}`, and an empty text where none does.

    Source: slime's prefix, under which `math` and `deepscaler` never find an answer: they look for the box
    that was taken off.
    """
    form: str = getattr(reward, "answer_form", "{}")

    @functools.wraps(reward)
    def boxed_reward(args: RolloutConfig, sample: Sample) -> Awaitable[RewardValue] | RewardValue:
        answer = last_boxed(sample.response)
        bare = copy.copy(sample)
        bare.response = "" if answer is None else form.format(answer)
        return reward(args, bare)

    if not inspect.iscoroutinefunction(reward):
        return boxed_reward

    @functools.wraps(reward)
    async def boxed_async(args: RolloutConfig, sample: Sample) -> RewardValue:
        result = boxed_reward(args, sample)
        assert inspect.isawaitable(result)
        return await result

    return boxed_async


def label_check_of(reward: Reward) -> LabelCheck | None:
    """Return what checks the labels for `reward`, or None where it takes any."""
    check: LabelCheck | None = getattr(reward, "label_check", None)
    return check


_resolved = functools.lru_cache(maxsize=64)(rewards.resolve)
_resolved_group = functools.lru_cache(maxsize=64)(group_rewards.resolve)


async def async_rm(args: RolloutConfig, sample: Sample) -> RewardValue:
    """Return the sample's reward. A plain function runs in a thread, so that it cannot hold up the others.

    Raises: RewardFailed where no reward is chosen, or what it returns is no finite number (or dict);
    RewardTimeout where it takes longer than `reward_timeout_s`; PluginError where it is unknown. What a
    reward raises, it raises.
    """
    name = reward_name(args, sample)
    if name is None:
        raise RewardFailed("no reward is chosen: give --rm-type or --custom-rm-path")
    result = await _call(_resolved(name), args, sample, name=name, timeout_s=args.reward_timeout_s)
    return checked_reward(result, args.reward_key, name)


async def batched_async_rm(args: RolloutConfig, samples: list[Sample]) -> list[RewardValue]:
    """Return the reward of each sample: by one call of the group reward with `group_rm`, else one by one.

    Raises: as `async_rm`; RewardFailed also where a group reward returns another number of rewards.
    """
    if not args.group_rm or args.custom_rm_path is None:
        return list(await asyncio.gather(*(async_rm(args, sample) for sample in samples)))
    name = args.custom_rm_path
    found = await _call(_resolved_group(name), args, samples, name=name, timeout_s=args.reward_timeout_s)
    if not isinstance(found, Sequence) or len(found) != len(samples):
        raise RewardFailed(
            f"the group reward {name!r} must return {len(samples)} rewards, not {found!r:.200}"
        )
    return [checked_reward(value, args.reward_key, name) for value in found]


def reward_name(args: RolloutConfig, sample: Sample) -> str | None:
    """Return the name of the reward that counts for `sample`, or None."""
    return sample.custom_rm_path or chosen_reward(args, sample.metadata)


def chosen_reward(args: RolloutConfig, metadata: Mapping[str, object]) -> str | None:
    """Return the name of the reward that counts for a problem with such metadata, or None."""
    named = metadata.get("rm_type")
    return args.custom_rm_path or (named if isinstance(named, str) else None) or args.rm_type


def checked_reward(value: object, reward_key: str | None, name: str) -> RewardValue:
    """Return `value` as a reward; numbers of every kind become float.

    Raises: RewardFailed naming the reward where `value`, or its entry `reward_key`, is no finite number.
    """
    number = value
    if isinstance(value, dict):
        if reward_key is None or reward_key not in value:
            raise RewardFailed(
                f"the reward {name!r} returned a dict with {', '.join(map(str, value))}: "
                f"--reward-key must name one, not {reward_key!r}"
            )
        number = value[reward_key]
    try:
        as_float = float(number)  # type: ignore[arg-type]  # whatever a plug-in returned
    except (TypeError, ValueError, OverflowError):
        raise RewardFailed(f"the reward {name!r} returned {value!r:.200}, which is no number") from None
    if isinstance(number, str) or not math.isfinite(as_float):
        raise RewardFailed(f"the reward {name!r} returned {value!r:.200}, which is no finite number")
    return value if isinstance(value, dict) else as_float


async def _call(function: Callable[..., Any], *arguments: object, name: str, timeout_s: float) -> object:
    """Return what `function` returns. Its time begins when it does: waiting for a thread is free."""
    if getattr(function, "keeps_time", False) and inspect.iscoroutinefunction(function):
        return await function(*arguments)
    if inspect.iscoroutinefunction(function):
        async with deadline(timeout_s, f"the reward {name!r}", RewardTimeout):
            return await function(*arguments)
    async with (
        thread_slot(f"reward {name!r}"),
        deadline(timeout_s, f"the reward {name!r}", RewardTimeout),
    ):
        result = await in_thread(function, *arguments)
        return await result if inspect.isawaitable(result) else result
