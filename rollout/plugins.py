"""The rollout's plug points and the functions chosen for them, looked up and checked once.

A plug-in is named by a registered name, `package.module:function` or `package.module.function`.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeVar

from ..registry import Registry
from .config import RolloutConfig
from .data_source import DataSource
from .filters import DynamicFilter, OverSamplingFilter, dynamic_filters, over_sampling_filters
from .outputs import RolloutFnEvalOutput, RolloutFnTrainOutput
from .processors import MultimodalProcessor, multimodal_processors
from .rewards import GroupReward, Reward, group_rewards, rewards
from .sample import Sample
from .tool_calls import ToolParser, tool_parsers
from .tools import Tool, load_tools

GenerateFn: TypeAlias = Callable[[RolloutConfig, Sample, dict[str, Any]], Awaitable[Sample | list[Sample]]]
"""`async f(args, sample, sampling_params)`; may also take `evaluation: bool`."""

RolloutFn: TypeAlias = Callable[..., RolloutFnTrainOutput | RolloutFnEvalOutput]
"""`f(args, rollout_id, data_source, evaluation=False)`."""

_Rollout = TypeVar("_Rollout", bound=RolloutFn)


SampleFilter: TypeAlias = Callable[[RolloutConfig, list[list[Sample]]], None]
"""`f(args, groups)`: sets `remove_sample` on samples of the batch."""

AllSamplesProcess: TypeAlias = Callable[[RolloutConfig, list[list[Sample]], Any], None]
"""`f(args, groups, data_source)`: sees every group that was decided on, in order of submission."""


def _generate(args: RolloutConfig, sample: Sample, sampling_params: dict[str, Any]) -> object: ...


def _rollout(
    args: RolloutConfig, rollout_id: int, data_source: DataSource, *, evaluation: bool
) -> object: ...


def _sample_filter(args: RolloutConfig, samples: list[list[Sample]]) -> object: ...


def _all_samples_process(
    args: RolloutConfig, all_samples: list[list[Sample]], data_source: DataSource
) -> object: ...


generate_functions: Registry[GenerateFn] = Registry("generate function", expects=_generate)
"""What makes one sample, or several, of a prompt."""

rollout_functions: Registry[RolloutFn] = Registry("rollout function", expects=_rollout)
"""What makes a step's groups."""

sample_filters: Registry[SampleFilter] = Registry("rollout sample filter", expects=_sample_filter)
"""What marks samples of the batch that are not to be trained on."""

all_samples_processes: Registry[AllSamplesProcess] = Registry(
    "rollout all-samples process", expects=_all_samples_process
)
"""What looks at every group of a rollout, kept or not."""


_NEEDS_ROUTER: Final = "needs_router"


def without_router(rollout: _Rollout) -> _Rollout:
    """Mark a rollout function that samples nothing: it is run without a router and without a reward."""
    setattr(rollout, _NEEDS_ROUTER, False)
    return rollout


def needs_router(rollout: RolloutFn) -> bool:
    """Tell whether `rollout` samples from workers and grades what they say, as most do."""
    return bool(getattr(rollout, _NEEDS_ROUTER, True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugins:
    """The functions that the settings name; None where they name none."""

    generate: GenerateFn | None
    reward: Reward | None
    group_reward: GroupReward | None
    dynamic_filter: DynamicFilter | None
    rollout: RolloutFn | None
    evaluation: RolloutFn | None
    over_sampling_filter: OverSamplingFilter | None
    sample_filter: SampleFilter | None
    all_samples_process: AllSamplesProcess | None
    multimodal_processor: MultimodalProcessor | None
    tools: tuple[Tool, ...]
    tool_parser: ToolParser

    @classmethod
    def resolve(cls, args: RolloutConfig) -> "Plugins":
        """Look up everything that `args` names.

        Raises: PluginError where one is unknown, cannot be imported or has the wrong signature.
        """
        reward = args.custom_rm_path or args.rm_type
        return cls(
            generate=_maybe(generate_functions, args.custom_generate_function_path),
            reward=None if args.group_rm else _maybe(rewards, reward),
            group_reward=_maybe(group_rewards, args.custom_rm_path) if args.group_rm else None,
            dynamic_filter=_maybe(dynamic_filters, args.dynamic_sampling_filter_path),
            rollout=_maybe(rollout_functions, args.rollout_function_path),
            evaluation=_maybe(rollout_functions, args.eval_function_path or args.rollout_function_path),
            over_sampling_filter=_maybe(over_sampling_filters, args.over_sampling_filter_path),
            sample_filter=_maybe(sample_filters, args.rollout_sample_filter_path),
            all_samples_process=_maybe(all_samples_processes, args.rollout_all_samples_process_path),
            multimodal_processor=_maybe(multimodal_processors, args.multimodal_processor_path),
            tools=load_tools(args.tools),
            tool_parser=tool_parsers.resolve(args.tool_parser),
        )


_T = TypeVar("_T")


def _maybe(registry: Registry[_T], name: str | None) -> _T | None:
    return None if name is None else registry.resolve(name)
