"""Groups: samples are generated and graded, all at a time; what goes wrong is noted on the sample."""

import asyncio
import functools
import inspect
from collections.abc import Mapping
from typing import Any

from ..errors import HttpError, RolloutError
from .config import RolloutConfig
from .deadline import deadline
from .filters import flattened
from .generate import generate
from .leftovers import mask_earlier_tokens
from .plugins import GenerateFn, generate_functions
from .problems import GenerateTimeout, PluginCancelled, RouterUnavailable, code_of, reason_of
from .rewards import async_rm, batched_async_rm
from .sample import FINISHED, UNFINISHED, Sample, Status
from .seeds import stable_seed
from .state import rollout_state

_resolved = functools.lru_cache(maxsize=64)(generate_functions.resolve)


async def generate_and_rm(
    args: RolloutConfig,
    sample: Sample,
    sampling_params: Mapping[str, Any],
    evaluation: bool = False,  # noqa: FBT001, FBT002  slime's signature
) -> Sample | list[Sample]:
    """Generate `sample` and give it its reward; return it, or the samples that it was fanned out to.

    A sample that is finished already is only rewarded, if it has no reward yet. With
    `mask_offpolicy_in_partial_rollout`, what it brings from earlier rollouts is masked first. What goes wrong
    in generating or rewarding is recorded on the sample (status failed, `metadata["error"]`) and its siblings
    go on. With `group_rm` the reward is left to the group.

    Raises: ConfigError where a plug-in is at fault; RouterUnavailable, of which no sample is guilty;
    whatever a plug-in raises that is not Espalier's own.
    """
    async with rollout_state(args) as state:
        samples: list[Sample] = [sample]
        fanned_out = False
        mask_earlier_tokens(args, sample)
        try:
            if sample.status in UNFINISHED:
                async with state.semaphore:
                    if state.aborted:
                        sample.status = Status.ABORTED
                        return sample
                    function = _generate_function(args, sample)
                    result = await _generated(function, args, sample, sampling_params, evaluation=evaluation)
                samples, fanned_out = (result, True) if isinstance(result, list) else ([result], False)
            if not args.group_rm and not state.aborted:
                await asyncio.gather(*(_give_reward(args, item) for item in samples))
        except RouterUnavailable:
            raise
        except (RolloutError, HttpError) as error:
            sample.fail(reason_of(error), code_of(error))
            return sample
    return samples if fanned_out else samples[0]


async def generate_and_rm_group(
    args: RolloutConfig,
    group: list[Sample],
    sampling_params: Mapping[str, Any],
    evaluation: bool = False,  # noqa: FBT001, FBT002  slime's signature
) -> list[Sample | list[Sample]]:
    """Generate and reward the samples of one group, all at a time; return them in order.

    With `rollout_deterministic` each sample gets a seed of its own, from `rollout_seed` and its index.

    Raises: as `generate_and_rm`, after every sample of the group has ended; PluginCancelled where a plug-in
    raises CancelledError though the group goes on, which would else look like the end of the rollout.
    """
    try:
        return await _generated_group(args, group, sampling_params, evaluation=evaluation)
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise PluginCancelled("a generate function or a reward raised CancelledError") from error


async def _generated_group(
    args: RolloutConfig, group: list[Sample], sampling_params: Mapping[str, Any], *, evaluation: bool
) -> list[Sample | list[Sample]]:
    async with rollout_state(args) as state:
        results = await asyncio.gather(
            *(
                generate_and_rm(args, sample, _seeded(args, sample, sampling_params), evaluation)
                for sample in group
            ),
            return_exceptions=True,
        )
        done: list[Sample | list[Sample]] = []
        for result in results:
            if isinstance(result, BaseException):
                raise result
            done.append(result)
        if args.group_rm and not state.aborted:
            await _give_group_reward(args, flattened(done))
    return done


def _seeded(args: RolloutConfig, sample: Sample, sampling_params: Mapping[str, Any]) -> dict[str, Any]:
    seed = (
        {"sampling_seed": stable_seed("sampling", args.rollout_seed, sample.index)}
        if args.rollout_deterministic
        else {}
    )
    return {**sampling_params, **seed}


def _generate_function(args: RolloutConfig, sample: Sample) -> GenerateFn:
    """Return what makes `sample`: the function that it names itself, that of the settings, or `generate`."""
    name = sample.generate_function_path or args.custom_generate_function_path
    return generate if name is None else _resolved(name)


async def _generated(
    function: GenerateFn,
    args: RolloutConfig,
    sample: Sample,
    sampling_params: Mapping[str, Any],
    *,
    evaluation: bool,
) -> Sample | list[Sample]:
    takes_evaluation = "evaluation" in inspect.signature(function).parameters
    options = {"evaluation": evaluation} if takes_evaluation else {}
    async with deadline(args.generate_timeout_s, "the generate function", GenerateTimeout):
        result: object = await function(args, sample, dict(sampling_params), **options)
    if isinstance(result, Sample):
        return result
    if isinstance(result, list) and result and all(isinstance(item, Sample) for item in result):
        return result
    raise RolloutError(
        f"the generate function must return a Sample or a list of them, not {type(result).__name__}"
    )


async def _give_reward(args: RolloutConfig, sample: Sample) -> None:
    if sample.status in FINISHED and sample.reward is None:
        sample.reward = await async_rm(args, sample)


async def _give_group_reward(args: RolloutConfig, samples: list[Sample]) -> None:
    if any(sample.status not in FINISHED for sample in samples):
        return
    if all(sample.reward is not None for sample in samples):  # kept from an earlier rollout
        return
    try:
        for sample, reward in zip(samples, await batched_async_rm(args, samples), strict=True):
            sample.reward = reward
    except (RolloutError, HttpError) as error:
        for sample in samples:
            sample.fail(reason_of(error), code_of(error))
