"""Evaluation: every prompt of every set, sampled and graded once, and nothing dropped in silence.

A sample that could not be had counts neither as right nor as wrong: it is in no mean, and is counted by
itself. slime lets it end the run.
"""

import asyncio
from pathlib import Path

from ..errors import ConfigError, EspalierError, RolloutError
from .batch_metrics import batch_metrics
from .config import RolloutConfig
from .data_source import RolloutDataSource
from .eval_sets import EvalSet, eval_sets
from .filters import flattened
from .groups import generate_and_rm_group
from .metrics import Metrics, eval_metrics
from .outputs import RolloutFnEvalOutput
from .plugins import Plugins
from .problems import RouterUnavailable, reason_of
from .progress import current_observer
from .records import encode_group
from .rewards import rewards
from .sample import FINISHED, Sample, Status
from .state import rollout_state


async def eval_rollout(args: RolloutConfig, rollout_id: int) -> RolloutFnEvalOutput:
    """Run every evaluation set of the settings, all at a time, within `sglang_server_concurrency`.

    Returns by set `rewards` (numbers), `truncated` and `samples`, one entry each for every sample that has a
    reward, and the metrics `eval/{name}…`. With `eval_dump`, every sample is written to
    `eval/{rollout_id}-{name}.jsonl` in the output folder.

    Raises: ConfigError where there are no sets, or one is wrong; DataError where its data are; RolloutError
    where nothing of a set could be sampled; RouterUnavailable as in training.
    """
    sets = _sets(args)
    async with rollout_state(args) as state:
        state.aborted = False
        results = await asyncio.gather(*(eval_rollout_single_dataset(each) for each in sets))
    output = RolloutFnEvalOutput(data={}, metrics={})
    metrics: Metrics = {}
    for each, groups in zip(sets, results, strict=True):
        graded = [[sample for sample in group if _is_graded(sample)] for group in groups]
        samples = [sample for group in graded for sample in group]
        output.data[each.name] = {
            "rewards": [sample.get_reward_value(each.args) for sample in samples],
            "truncated": [sample.status is Status.TRUNCATED for sample in samples],
            "samples": samples,
        }
        missing = sum(len(group) for group in groups) - len(samples)
        metrics |= eval_metrics(each.args, each.name, graded, missing=missing)
        metrics |= {
            f"eval/{each.name}/{name.removeprefix('rollout/')}": value
            for name, value in batch_metrics(each.args, graded).items()
        }
        if args.eval_dump:
            dump_samples(args.output_dir / "eval" / f"{rollout_id}-{each.name}.jsonl", groups, rollout_id)
    output.metrics = metrics
    return output


def check_evaluation(args: RolloutConfig) -> None:
    """Check, before any work, everything that an evaluation needs.

    Raises: ConfigError where there are no sets, or one is wrong; DataError where its data cannot be read;
    PluginError where a function that it names is unknown or has the wrong signature.
    """
    for each in _sets(args):
        source = RolloutDataSource(each.args)
        Plugins.resolve(each.args)
        named = each.metadata.get("rm_type")
        for name in [named] if isinstance(named, str) else source.reward_names():
            rewards.resolve(name)


def _sets(args: RolloutConfig) -> list[EvalSet]:
    sets = eval_sets(args)
    if not sets:
        raise ConfigError("there is nothing to evaluate on: give --eval-prompt-data or --eval-config")
    return sets


async def eval_rollout_single_dataset(each: EvalSet) -> list[list[Sample]]:
    """Sample and grade one set; return its groups in the order of the data.

    What goes wrong with a sample is recorded on it, as in training; a group that raises has failed whole.

    Raises: DataError where the data cannot be read; RolloutError where every sample failed.
    """
    source = RolloutDataSource(each.args)
    groups = source.get_samples(len(source))
    for sample in (sample for group in groups for sample in group):
        sample.metadata = {**sample.metadata, **each.metadata}
    done = await asyncio.gather(*(_evaluated(each, group) for group in groups))
    failed = [sample for group in done for sample in group if not _is_graded(sample)]
    if failed:
        problem = failed[0].metadata.get("error", f"it is {failed[0].status}")
        current_observer().on_notice(
            f"evaluation set {each.name}: {len(failed)} samples have no reward; the first: {problem}"
        )
        if len(failed) == sum(len(group) for group in done):
            raise RolloutError(f"evaluation set {each.name!r}: no sample could be had: {problem}")
    return list(done)


async def _evaluated(each: EvalSet, group: list[Sample]) -> list[Sample]:
    try:
        return flattened(await generate_and_rm_group(each.args, group, each.sampling_params, evaluation=True))
    except (ConfigError, RouterUnavailable):
        raise
    except Exception as error:  # noqa: BLE001  one group's trouble is not the evaluation's
        for sample in group:
            sample.fail(reason_of(error))
        return group


def dump_samples(path: Path, groups: list[list[Sample]], rollout_id: int) -> None:
    """Write the samples to `path`, one a line, whole or not at all; a file from before is replaced.

    Raises: EspalierError where the file cannot be written; Unsavable naming a value that JSON cannot hold.
    """
    lines = b"".join(encode_group(group, rollout_id) for group in groups)
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(lines)
        partial.replace(path)
    except OSError as error:
        raise EspalierError(f"{path} cannot be written: {error.strerror or error}") from error


def _is_graded(sample: Sample) -> bool:
    return sample.status in FINISHED and sample.reward is not None
