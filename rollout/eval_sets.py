"""The evaluation sets that the settings name, each with what it has of its own.

A set becomes a configuration of its own: the rollout's, with the set's data, rewards and sampling in their
places. Whatever takes `args` then needs to know nothing of evaluation.

Source: slime's `--eval-config` and `--eval-prompt-data`; names of keys and the order of precedence (set,
`defaults`, `eval_…` settings, `rollout_…` settings) are slime's.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from ..errors import ConfigError
from .config import RolloutConfig

_NAME: Final = re.compile(r"\w[\w.-]*", re.ASCII)
"""A set's name becomes part of a metric's and of a file's."""

_T = TypeVar("_T")


class EvalDefaults(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a set may have of its own; None: as everywhere else."""

    rm_type: str | None = None
    custom_rm_path: str | None = None
    custom_generate_function_path: str | None = None
    input_key: str | None = None
    label_key: str | None = None
    metadata_key: str | None = None
    multimodal_keys: dict[str, str] | None = None
    tool_key: str | None = None
    apply_chat_template: bool | None = None
    apply_chat_template_kwargs: dict[str, Any] | None = None
    n_samples_per_eval_prompt: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_response_len: int | None = None
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    min_new_tokens: int | None = None
    repetition_penalty: float | None = None
    skip_special_tokens: bool | None = None
    no_stop_trim: bool | None = None
    metadata_overrides: dict[str, Any] | None = None


class EvalDataset(EvalDefaults, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One evaluation set."""

    name: str
    path: str


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    datasets: list[EvalDataset]
    defaults: EvalDefaults = EvalDefaults()


class _File(msgspec.Struct, frozen=True, kw_only=True):
    eval: _Section


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EvalSet:
    """An evaluation set, ready to be run."""

    name: str

    args: RolloutConfig
    """the rollout's settings with the set's own in their places"""

    sampling_params: dict[str, Any]
    """under SGLang's names"""

    metadata: dict[str, Any]
    """goes over that of every sample"""


def eval_sets(args: RolloutConfig) -> list[EvalSet]:
    """Return the sets of `eval_config` and `eval_prompt_data`, in this order.

    Raises: ConfigError where the file cannot be read, a key in it is unknown or its value does not fit, two
    sets have one name, or a set has values that no rollout may have.
    """
    sets = [_eval_set(args, dataset) for dataset in _datasets(args)]
    for name in {each.name for each in sets if not _NAME.fullmatch(each.name)}:
        raise ConfigError(f"evaluation set {name!r}: a name has letters, digits, '_', '-' and '.' only")
    names = [each.name for each in sets]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two evaluation sets are called {name!r}")
    return sets


def _datasets(args: RolloutConfig) -> Iterator[EvalDataset]:
    if args.eval_config is not None:
        section = _read(args.eval_config)
        for dataset in section.datasets:
            yield _over(section.defaults, dataset)
    words = args.eval_prompt_data
    if len(words) % 2:
        raise ConfigError(f"--eval-prompt-data takes pairs of a name and a path, not {len(words)} words")
    for name, path in zip(words[::2], words[1::2], strict=True):
        yield EvalDataset(name=name, path=path)


def _read(path: Path) -> _Section:
    try:
        import yaml  # noqa: PLC0415  only who has such a file needs the package
    except ModuleNotFoundError:
        raise ConfigError("--eval-config needs PyYAML: pip install 'espalier[eval]'") from None
    try:
        found: object = yaml.safe_load(path.read_bytes())
        return msgspec.convert(found, _File).eval
    except OSError as error:
        raise ConfigError(f"--eval-config {path}: {error.strerror or error}") from None
    except (yaml.YAMLError, msgspec.ValidationError, UnicodeDecodeError) as error:
        complaint = " ".join(str(error).split())
        if "unknown field" in complaint:
            complaint += f"; known are {', '.join(_known_keys(complaint))}"
        raise ConfigError(f"--eval-config {path}: {complaint}") from None


def _known_keys(complaint: str) -> list[str]:
    """Return the keys of the part of the file that msgspec's `complaint` names."""
    if "datasets[" in complaint:
        return sorted(EvalDataset.__struct_fields__)
    return sorted((EvalDefaults if "defaults" in complaint else _Section).__struct_fields__)


def _over(defaults: EvalDefaults, dataset: EvalDataset) -> EvalDataset:
    missing = {
        name: getattr(defaults, name)
        for name in EvalDefaults.__struct_fields__
        if getattr(dataset, name) is None
    }
    return msgspec.structs.replace(dataset, **missing)


def _eval_set(args: RolloutConfig, dataset: EvalDataset) -> EvalSet:
    own = dataset
    has_reward = own.rm_type is not None or own.custom_rm_path is not None
    if args.group_rm and not has_reward:
        raise ConfigError(
            f"evaluation set {own.name!r} needs an rm_type of its own: --group-rm is for training"
        )
    variables = own.apply_chat_template_kwargs
    template_variables = None if variables is None else msgspec.json.encode(variables).decode()
    stop_token_ids = None if own.stop_token_ids is None else tuple(map(str, own.stop_token_ids))
    try:
        settings = dataclasses.replace(
            args,
            prompt_data=Path(own.path),
            input_key=_first(own.input_key, args.eval_input_key, args.input_key),
            label_key=_first(own.label_key, args.eval_label_key, args.label_key),
            metadata_key=_first(own.metadata_key, args.metadata_key),
            multimodal_keys=(
                args.multimodal_keys
                if own.multimodal_keys is None
                else msgspec.json.encode(own.multimodal_keys).decode()
            ),
            tool_key=_first(own.tool_key, args.tool_key),
            apply_chat_template=_first(own.apply_chat_template, args.apply_chat_template),
            apply_chat_template_kwargs=(
                args.apply_chat_template_kwargs if template_variables is None else template_variables
            ),
            rollout_shuffle=False,
            partial_rollout=False,
            mask_offpolicy_in_partial_rollout=False,
            keep_surplus_groups=False,
            group_rm=False,
            rm_type=own.rm_type or args.rm_type,
            custom_rm_path=own.custom_rm_path if has_reward else args.custom_rm_path,
            custom_generate_function_path=(
                own.custom_generate_function_path or args.custom_generate_function_path
            ),
            n_samples_per_prompt=_first(own.n_samples_per_eval_prompt, args.n_samples_per_eval_prompt),
            rollout_temperature=_first(own.temperature, args.eval_temperature, args.rollout_temperature),
            rollout_top_p=_first(own.top_p, args.eval_top_p, args.rollout_top_p),
            rollout_top_k=_first(own.top_k, args.eval_top_k, args.rollout_top_k),
            rollout_max_response_len=_first(
                own.max_response_len, args.eval_max_response_len, args.rollout_max_response_len
            ),
            rollout_stop=args.rollout_stop if own.stop is None else tuple(own.stop),
            rollout_stop_token_ids=_first(stop_token_ids, args.rollout_stop_token_ids),
            rollout_skip_special_tokens=_first(own.skip_special_tokens, args.rollout_skip_special_tokens),
        )
    except ConfigError as error:
        raise ConfigError(f"evaluation set {own.name!r}: {error}") from None
    only_here = {
        name: getattr(own, name)
        for name in ("min_new_tokens", "repetition_penalty", "no_stop_trim")
        if getattr(own, name) is not None
    }
    metadata = {"rm_type": own.rm_type} if own.rm_type is not None else {}
    return EvalSet(
        name=own.name,
        args=settings,
        sampling_params=settings.sampling_params() | only_here,
        metadata={**metadata, **(own.metadata_overrides or {})},
    )


def _first(first: _T | None, *others: _T | None) -> _T:
    """Return the first value that is not None; the last always is one."""
    found: Sequence[_T] = [value for value in (first, *others) if value is not None]
    return found[0]
