"""The `espalier rollout` command: check everything, run the steps, save each one, say where it is."""

import asyncio
from collections.abc import Sequence
from typing import Final

from rich.console import Console

from ..errors import ConfigError, EspalierError, HttpError, PluginError, RolloutError
from .client import RetryPolicy, RouterClient
from .config import RolloutConfig
from .data_source import RolloutDataSource
from .display import StepDisplay, step_table
from .loop import generate_rollout
from .metrics import Metrics, sample_metrics
from .outputs import RolloutFnTrainOutput
from .plugins import Plugins, RolloutFn
from .progress import observing
from .rewards import rewards
from .sample import Sample
from .tokenizer import load_tokenizer
from .writer import RunWriter

EXIT_FAILED: Final = 1
"""The run ended before its last step; what was done by then is saved."""

EXIT_INTERRUPTED: Final = 130
"""Ended by Ctrl-C, as shells report it; what was done by then is saved."""


def run(config: RolloutConfig, *, console: Console | None = None) -> int:
    """Run `num_rollout` steps and save samples and metrics; return the exit status.

    A step that fails or is interrupted is saved as far as it got.

    Raises: ConfigError, before any work, where dataset, plug-ins, router or output folder are not as the
    settings say.
    """
    console = console or Console()
    data_source = RolloutDataSource(config)
    rollout = _checked_plugins(config, data_source)
    asyncio.run(_check_router(config))
    with RunWriter(config.output_dir, overwrite=config.overwrite) as writer:
        status = _run_steps(config, rollout, data_source, writer, console)
        console.print(f"samples: {writer.samples_path}", highlight=False, soft_wrap=True)
        console.print(f"metrics: {writer.metrics_path}", highlight=False, soft_wrap=True)
    return status


def _run_steps(
    config: RolloutConfig,
    rollout: RolloutFn,
    data_source: RolloutDataSource,
    writer: RunWriter,
    console: Console,
) -> int:
    for rollout_id in range(config.num_rollout):
        title = f"step {rollout_id + 1} of {config.num_rollout}"
        display = StepDisplay(console, title, config.rollout_batch_size)
        try:
            with display, observing(display):
                output = _train_output(rollout(config, rollout_id, data_source, evaluation=False))
        except (Exception, KeyboardInterrupt) as error:
            _save(config, writer, rollout_id, display.kept, {"rollout/groups_kept": float(len(display.kept))})
            saved = f"{title} ended early; {len(display.kept)} of its groups are saved"
            if isinstance(error, KeyboardInterrupt):
                console.print(f"interrupted: {saved}", highlight=False)
                return EXIT_INTERRUPTED
            if isinstance(error, EspalierError) and not isinstance(error, ConfigError):
                console.print(f"[bold red]error:[/] {saved}", highlight=False)
                console.print(str(error), markup=False, highlight=False, soft_wrap=True)
                return EXIT_FAILED
            raise
        metrics = _save(config, writer, rollout_id, output.samples, output.metrics or {})
        console.print(step_table(title, metrics))
    return 0


def _save(
    config: RolloutConfig,
    writer: RunWriter,
    rollout_id: int,
    groups: Sequence[Sequence[Sample]],
    metrics: Metrics,
) -> Metrics:
    ordered = sorted(groups, key=lambda group: group[0].index or 0 if group else 0)
    metrics = metrics | sample_metrics(config, ordered, metrics.get("perf/rollout_time"))
    writer.write(rollout_id, ordered, metrics)
    return metrics


def _checked_plugins(config: RolloutConfig, data_source: RolloutDataSource) -> RolloutFn:
    plugins = Plugins.resolve(config)
    named_by_data = data_source.reward_names()
    for name in named_by_data:
        rewards.resolve(name)
    if config.custom_rm_path is None and config.rm_type is None and not named_by_data:
        raise ConfigError(f"no reward is chosen: give --rm-type, one of {', '.join(rewards.names())}")
    if config.hf_checkpoint is not None:
        load_tokenizer(config.hf_checkpoint)
    return plugins.rollout or generate_rollout


async def _check_router(config: RolloutConfig) -> None:
    async with RouterClient(
        config.router_url,
        max_connections=1,
        request_timeout_s=config.request_timeout_s,
        retry=RetryPolicy(attempts=1),
    ) as client:
        try:
            workers = await client.count_workers()
            tells_tokens = config.hf_checkpoint is not None or await client.tree_stats() is not None
        except (HttpError, RolloutError) as error:
            raise ConfigError(f"--router-url {config.router_url}: {error}") from None
    if workers == 0:
        raise ConfigError(
            f"--router-url {config.router_url}: the router has no worker that takes calls; "
            "add one: POST /add_worker?url=http://HOST:PORT"
        )
    if not tells_tokens and config.custom_generate_function_path is None:
        raise ConfigError(
            f"--router-url {config.router_url}: the router keeps no radix tree, which tells the tokens of "
            "text prompts: run it with --middleware radix_tree, or give --hf-checkpoint"
        )


def _train_output(output: object) -> RolloutFnTrainOutput:
    if isinstance(output, RolloutFnTrainOutput):
        return output
    if isinstance(output, list):
        return RolloutFnTrainOutput(samples=output)
    raise PluginError(f"the rollout function must return a RolloutFnTrainOutput, not {type(output).__name__}")
