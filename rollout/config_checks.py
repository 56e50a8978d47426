"""What the settings of a rollout must be, beyond their types. Each error names the flag."""

import math
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from ..errors import ConfigError

if TYPE_CHECKING:
    from .config import RolloutConfig

_COUNTS: Final = (
    "num_rollout",
    "rollout_batch_size",
    "n_samples_per_prompt",
    "rollout_max_response_len",
    "rollout_max_context_len",
    "tool_max_turns",
    "tool_max_observation_tokens",
    "max_dropped_groups",
    "rollout_num_gpus",
    "sglang_server_concurrency",
    "code_rm_memory_mb",
    "n_samples_per_eval_prompt",
    "eval_interval",
    "num_layers",
    "moe_router_topk",
    "rollout_max_prompt_len",
)
"""Settings that are at least 1 where they are given."""

_TIMES_S: Final = (
    "request_timeout_s",
    "reward_timeout_s",
    "router_patience_s",
    "code_rm_timeout_s",
    "tool_timeout_s",
    "generate_timeout_s",
)
"""Settings in seconds: above 0 where they are given."""

_ASKING_REWARDS: Final = ("remote", "remote_rm", "on_policy_distillation")
"""Rewards that ask a server."""


def check_settings(config: "RolloutConfig") -> None:
    """Check that values are in range and fit together.

    Raises: ConfigError that names the flag.
    """
    for name in _COUNTS:
        if getattr(config, name) is not None and getattr(config, name) < 1:
            raise ConfigError(f"{_flag(name)} must be at least 1, not {getattr(config, name)}")
    for name in _TIMES_S:
        value = getattr(config, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{_flag(name)} must be a positive number of seconds, not {value}")
    _check_sampling(config)
    _check_batch(config)
    _check_urls(config)
    _check_reward(config)
    _check_routing_replay(config)
    _check_leftovers(config)
    _check_fully_async(config)
    _check_tools(config)


def _check_sampling(config: "RolloutConfig") -> None:
    if not (math.isfinite(config.rollout_temperature) and config.rollout_temperature >= 0):
        raise ConfigError(f"--rollout-temperature must be 0 or more, not {config.rollout_temperature}")
    if not 0 < config.rollout_top_p <= 1:
        raise ConfigError(f"--rollout-top-p must be above 0 and at most 1, not {config.rollout_top_p}")
    if config.rollout_top_k != -1 and config.rollout_top_k < 1:
        raise ConfigError(f"--rollout-top-k must be -1 or at least 1, not {config.rollout_top_k}")


def _check_batch(config: "RolloutConfig") -> None:
    size = config.over_sampling_batch_size
    if size is not None and size < config.rollout_batch_size:
        raise ConfigError(
            f"--over-sampling-batch-size {size} is below --rollout-batch-size {config.rollout_batch_size}"
        )


def _check_urls(config: "RolloutConfig") -> None:
    for name in ("router_url", "rm_url"):
        url = getattr(config, name)
        parts = urlsplit(url or "http://unset")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{_flag(name)} {url}: expected http://HOST:PORT")


def _check_reward(config: "RolloutConfig") -> None:
    for flag, name in (("--rm-type", config.rm_type), ("--custom-rm-path", config.custom_rm_path)):
        if (name or "").removeprefix("boxed_") in _ASKING_REWARDS and config.rm_url is None:
            raise ConfigError(f"{flag} {name} needs --rm-url, the URL of a grader or a teacher")
    if config.group_rm and config.custom_rm_path is None:
        raise ConfigError("--group-rm needs --custom-rm-path, a reward that takes a list of samples")


def _check_routing_replay(config: "RolloutConfig") -> None:
    if config.use_rollout_routing_replay and (config.num_layers is None or config.moe_router_topk is None):
        raise ConfigError("--use-rollout-routing-replay needs --num-layers and --moe-router-topk")


def _check_fully_async(config: "RolloutConfig") -> None:
    limit, staleness = config.fully_async_max_groups, config.max_weight_staleness
    if limit is not None and limit < config.rollout_batch_size:
        raise ConfigError(
            f"--fully-async-max-groups {limit} is below --rollout-batch-size {config.rollout_batch_size}"
        )
    if staleness is not None and staleness < 0:
        raise ConfigError(f"--max-weight-staleness must be 0 or more, not {staleness}")


def _check_tools(config: "RolloutConfig") -> None:
    if config.custom_generate_function_path == "tool_calling":
        for name in ("tools", "hf_checkpoint"):
            if not getattr(config, name):
                raise ConfigError(f"--custom-generate-function-path tool_calling needs {_flag(name)}")


def _check_leftovers(config: "RolloutConfig") -> None:
    if config.mask_offpolicy_in_partial_rollout and not config.partial_rollout:
        raise ConfigError("--mask-offpolicy-in-partial-rollout needs --partial-rollout")
    if config.mask_offpolicy_in_partial_rollout and config.keep_surplus_groups:
        raise ConfigError(
            "--keep-surplus-groups keeps what --mask-offpolicy-in-partial-rollout then masks: choose one"
        )
    for name in ("partial_rollout", "keep_surplus_groups"):
        if config.rollout_deterministic and getattr(config, name):
            raise ConfigError(
                f"{_flag(name)} and --rollout-deterministic exclude each other: what is left over when "
                "a batch is complete depends on timing"
            )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
