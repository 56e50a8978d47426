"""The `espalier rollout` command: check everything, run the steps, save each one, say where it is."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final

from rich.console import Console

from ..errors import ConfigError, DataError, EspalierError, HttpError, PluginError, RolloutError
from .array_files import check_arrays_can_be_made, write_arrays
from .batch_metrics import batch_metrics, speed_metrics, staleness_metrics
from .client import RetryPolicy, RouterClient
from .config import RolloutConfig
from .data_source import RolloutDataSource, RolloutDataSourceWithBuffer
from .display import StepDisplay, eval_table, step_table
from .evaluation import check_evaluation
from .filters import flattened
from .leftovers import check_takes_back
from .loop import generate_rollout
from .metrics import FAILED_PREFIX, GROUPS_DROPPED, GROUPS_KEPT, Metrics, sample_metrics
from .outputs import RolloutFnEvalOutput, RolloutFnTrainOutput
from .plugins import Plugins, RolloutFn, needs_router
from .problems import Unsavable
from .progress import observing
from .records import encode_group
from .rewards import chosen_reward, label_check_of, rewards
from .sample import Sample
from .signals import ending_as_ctrl_c
from .staleness import WeightHistory
from .tokenizer import load_tokenizer
from .trackers import Tracker, trackers_of
from .writer import RunWriter

EXIT_FAILED: Final = 1
"""The run ended before its last step; what was done by then is saved."""

EXIT_INTERRUPTED: Final = 130
"""Ended by Ctrl-C or a signal that means the same, as shells report it; what was done by then is saved."""


def run(config: RolloutConfig, *, console: Console | None = None) -> int:
    """Run `num_rollout` steps and save samples and metrics; return the exit status.

    A step that fails or is interrupted, by Ctrl-C, SIGTERM or SIGHUP, is saved as far as it got.

    Raises: ConfigError, before any work, where dataset, plug-ins, router or output folder are not as the
    settings say.
    """
    console = console or Console()
    with ending_as_ctrl_c():
        data_source = RolloutDataSourceWithBuffer(config)
        check_takes_back(config, data_source)
        loaded = data_source.load()
        rollout, evaluation = _checked_plugins(config, data_source)
        if needs_router(rollout):
            asyncio.run(_check_router(config))
        first_rollout_id = 0 if loaded is None else loaded + 1
        with ExitStack() as open_files:
            writer = open_files.enter_context(RunWriter(config.output_dir, overwrite=config.overwrite))
            trackers = [open_files.enter_context(each) for each in trackers_of(config, first_rollout_id)]
            status = _Run(
                config=config,
                rollout=rollout,
                evaluation=evaluation,
                data_source=data_source,
                writer=writer,
                console=console,
                first_rollout_id=first_rollout_id,
                trackers=trackers,
            ).all_steps()
            if writer.is_published:
                console.print(f"samples: {writer.samples_path}", highlight=False, soft_wrap=True)
                console.print(f"metrics: {writer.metrics_path}", highlight=False, soft_wrap=True)
            else:
                console.print("nothing was saved", highlight=False)
    return status


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """A run of the command, once everything is checked."""

    config: RolloutConfig
    rollout: RolloutFn
    evaluation: RolloutFn
    data_source: RolloutDataSource
    writer: RunWriter
    console: Console
    first_rollout_id: int
    trackers: Sequence[Tracker] = ()
    history: WeightHistory = field(default_factory=WeightHistory)

    def all_steps(self) -> int:
        """Run every step, and the evaluations between them; return the exit status.

        A rollout function that has something to `close` is closed, and what it gives back then is saved.
        """
        close = getattr(self.rollout, "close", None)
        try:
            status = self._steps_and_evaluations()
        finally:
            if callable(close):
                close()
        if not status and callable(close) and self.config.save is not None:
            self.data_source.save(max(self.first_rollout_id, self.config.num_rollout) - 1)
        return status

    def _steps_and_evaluations(self) -> int:
        interval = self.config.eval_interval
        for rollout_id in range(self.first_rollout_id, self.config.num_rollout):
            status = self._step(rollout_id)
            if not status and interval is not None and (rollout_id + 1) % interval == 0:
                status = self._evaluate(rollout_id)
            if status:
                return status
        return 0

    def _step(self, rollout_id: int) -> int:
        config = self.config
        title = f"step {rollout_id + 1} of {config.num_rollout}"
        display = StepDisplay(self.console, title, config.groups_to_complete)
        try:
            with display, observing(display):
                output = _train_output(self.rollout(config, rollout_id, self.data_source, evaluation=False))
            metrics = self._save(rollout_id, output, display)
            if config.save is not None:
                self.data_source.save(rollout_id)
        except BaseException as error:  # noqa: BLE001  it is raised again where it is not for a person
            saved = self._saved_early(rollout_id, display)
            return self._end(error, f"{title} ended early; {saved} of its groups are saved")
        self.console.print(step_table(title, metrics))
        return 0

    def _evaluate(self, rollout_id: int) -> int:
        title = f"evaluation after step {rollout_id + 1}"
        display = StepDisplay(self.console, title, self.config.groups_to_complete)
        try:
            with observing(display):
                output = self.evaluation(self.config, rollout_id, self.data_source, evaluation=True)
            metrics = _numbers(_eval_metrics(output), display)
            self.writer.write(rollout_id, b"", metrics)
            self._write_extras(rollout_id, [], metrics, display)
        except BaseException as error:  # noqa: BLE001  as above
            return self._end(error, f"{title} ended early; the step is saved")
        self.console.print(eval_table(title, metrics))
        return 0

    def _end(self, error: BaseException, ended: str) -> int:
        """Say what ended and return the exit status; an error that says nothing to a person is raised."""
        if isinstance(error, KeyboardInterrupt):
            self.console.print(f"interrupted: {ended}", highlight=False)
            return EXIT_INTERRUPTED
        self.console.print(f"[bold red]error:[/] {ended}", highlight=False)
        if isinstance(error, EspalierError) and not isinstance(error, ConfigError):
            self.console.print(str(error), markup=False, highlight=False, soft_wrap=True)
            return EXIT_FAILED
        raise error

    def _saved_early(self, rollout_id: int, display: StepDisplay) -> int:
        """Save what a step had when it ended early; return how many groups that is."""
        if not display.kept:
            return 0
        output = RolloutFnTrainOutput(display.kept, {GROUPS_KEPT: len(display.kept)})
        try:
            metrics = self._save(rollout_id, output, display)
        except EspalierError as error:
            display.on_notice(str(error))
            return 0
        return int(metrics[GROUPS_KEPT] or 0)

    def _save(self, rollout_id: int, output: RolloutFnTrainOutput, display: StepDisplay) -> Metrics:
        """Write a step and return its metrics; groups that cannot be written are dropped, and told."""
        lines: list[bytes] = []
        saved: list[list[Sample]] = []
        for group in sorted(output.samples, key=lambda group: group[0].index or 0 if group else 0):
            try:
                lines.append(encode_group(group, rollout_id))
            except Unsavable as error:
                display.on_group_dropped(group, error.code, str(error))
            else:
                saved.append(group)
        metrics = _numbers(output.metrics or {}, display)
        metrics |= sample_metrics(self.config, saved) | batch_metrics(self.config, saved)
        metrics |= speed_metrics(self.config, saved, metrics.get("perf/rollout_time") or 0.0)
        metrics |= staleness_metrics(self.history, flattened(saved))
        unsavable = len(output.samples) - len(saved)
        if unsavable:
            metrics |= {
                f"{FAILED_PREFIX}{Unsavable.code}": float(unsavable),
                GROUPS_KEPT: float(len(saved)),
                GROUPS_DROPPED: (metrics.get(GROUPS_DROPPED) or 0.0) + unsavable,
            }
        metrics.setdefault(GROUPS_KEPT, float(len(saved)))
        self.writer.write(rollout_id, b"".join(lines), metrics, display.timeline)
        self._write_extras(rollout_id, saved, metrics, display)
        return metrics

    def _write_extras(
        self, rollout_id: int, saved: list[list[Sample]], metrics: Metrics, display: StepDisplay
    ) -> None:
        """Write what can be made of a saved step at any time; trouble with it is told, and ends nothing."""
        try:
            for tracker in self.trackers:
                tracker.write(rollout_id, metrics)
            if self.config.save_arrays and saved:
                write_arrays(self.config.output_dir, rollout_id, saved, self.config)
        except EspalierError as error:
            display.on_notice(str(error))


def _numbers(metrics: Mapping[str, object], display: StepDisplay) -> Metrics:
    """Return the metrics as numbers; what a rollout function gives that is none is left out, and told."""
    numbers: Metrics = {}
    for name, value in metrics.items():
        try:
            numbers[name] = None if value is None else float(value)  # type: ignore[arg-type]  # a plug-in's
        except (TypeError, ValueError, OverflowError):
            display.on_notice(f"the metric {name!r} is left out: it is a {type(value).__name__}")
    return numbers


def _checked_plugins(config: RolloutConfig, data_source: RolloutDataSource) -> tuple[RolloutFn, RolloutFn]:
    """Return the functions that make training samples and that evaluate, once all plug-ins are checked."""
    plugins = Plugins.resolve(config)
    if config.save_arrays:
        check_arrays_can_be_made()
    if config.hf_checkpoint is not None:
        load_tokenizer(config.hf_checkpoint)
    if plugins.rollout is not None and not needs_router(plugins.rollout):
        if config.eval_interval is not None:
            raise ConfigError(
                f"--eval-interval: there is nothing to evaluate with --rollout-function-path "
                f"{config.rollout_function_path}, which samples nothing"
            )
        return plugins.rollout, plugins.rollout
    for name in data_source.reward_names():
        rewards.resolve(name)
    if config.custom_rm_path is None and config.rm_type is None and not data_source.reward_names():
        raise ConfigError(f"no reward is chosen: give --rm-type, one of {', '.join(rewards.names())}")
    if plugins.generate is None and plugins.rollout is None:  # else these may bring labels of their own
        _check_labels(config, data_source)
    if config.eval_interval is not None and config.eval_function_path is None:
        check_evaluation(config)
    return plugins.rollout or generate_rollout, plugins.evaluation or generate_rollout


def _check_labels(config: RolloutConfig, data_source: RolloutDataSource) -> None:
    if config.group_rm:
        return
    for problem in data_source.problems:
        name = chosen_reward(config, problem.metadata)
        check = label_check_of(rewards.resolve(name)) if name is not None else None
        complaint = check(problem.label) if check is not None else None
        if complaint is not None:
            raise DataError(f"{problem.where}: {complaint} ({config.label_key!r} is its key)")


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


def _eval_metrics(output: object) -> Mapping[str, object]:
    if isinstance(output, RolloutFnEvalOutput):
        return output.metrics or {}
    raise PluginError(
        f"the evaluation function must return a RolloutFnEvalOutput, not {type(output).__name__}"
    )
