"""What is done with the groups once there are enough: choose the batch, mark samples, show all of them."""

import inspect
from collections.abc import Callable

from ..errors import PluginError
from .config import RolloutConfig
from .plugins import Plugins
from .sample import Sample

Groups = list[list[Sample]]


def chosen_groups(args: RolloutConfig, plugins: Plugins, groups: Groups) -> Groups:
    """Return the batch, sorted by index: the first groups that the over-sampling filter returns, or all.

    Raises: PluginError where the filter raises, or returns something else than enough of these groups.
    """
    choose = plugins.over_sampling_filter
    if choose is not None:
        found: object = _called(choose, "over-sampling filter", args, groups)
        ours = {id(group) for group in groups}
        if not isinstance(found, list) or not all(id(group) in ours for group in found):
            raise PluginError(
                f"the over-sampling filter {args.over_sampling_filter_path!r} must return a list of groups "
                f"that it got, not {type(found).__name__}"
            )
        if len(found) < args.rollout_batch_size:
            raise PluginError(
                f"the over-sampling filter {args.over_sampling_filter_path!r} left {len(found)} of "
                f"{len(groups)} groups; --rollout-batch-size needs {args.rollout_batch_size}"
            )
        groups = found[: args.rollout_batch_size]
    return sorted(groups, key=lambda group: group[0].index or 0)


def mark_and_show(
    args: RolloutConfig,
    plugins: Plugins,
    *,
    batch: Groups,
    decided: Groups,
    data_source: Callable[[int], Groups],
) -> None:
    """Call the sample filter with the batch, and the all-samples process with every group `decided` on.

    The latter gets the data source itself where `data_source` is one's method, as it is in a rollout.

    Raises: PluginError where one of them raises.
    """
    if plugins.sample_filter is not None:
        _called(plugins.sample_filter, "rollout sample filter", args, batch)
    if plugins.all_samples_process is not None:
        owner = getattr(data_source, "__self__", data_source)
        _called(plugins.all_samples_process, "rollout all-samples process", args, decided, owner)


def _called(function: Callable[..., object], kind: str, *arguments: object) -> object:
    name = getattr(function, "__name__", function)
    try:
        result = function(*arguments)
    except Exception as error:  # a plug-in may raise anything
        raise PluginError(f"the {kind} {name!r} raised {type(error).__name__}: {error}") from error
    if inspect.iscoroutine(result):
        result.close()
        raise PluginError(f"the {kind} {name!r} is a coroutine function: write it without async")
    return result
