"""One sample: a prompt, what was sampled for it, and what became of it.

Invariant: `tokens` is the prompt's tokens followed by `response_length` response tokens; `loss_mask` and
`rollout_log_probs`, where they are not None, have one entry for each response token. A method that would
break this raises and changes nothing.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, Final, Protocol, Self, TypeAlias

import msgspec

from ..sglang import FinishReason, FinishType, MetaInfo, WeightSpan


class Status(StrEnum):
    """What became of a sample."""

    PENDING = "pending"
    COMPLETED = "completed"
    TRUNCATED = "truncated"
    ABORTED = "aborted"
    FAILED = "failed"


UNFINISHED: Final = (Status.PENDING, Status.ABORTED)
"""There is more to sample."""

FINISHED: Final = (Status.COMPLETED, Status.TRUNCATED)
"""There is a response to grade."""

STATUS_AT_FINISH = {
    FinishType.STOP: Status.COMPLETED,
    FinishType.LENGTH: Status.TRUNCATED,
    FinishType.ABORT: Status.ABORTED,
}
"""What a generation's end makes of its sample."""


@dataclass(slots=True, kw_only=True)
class SpecInfo:
    """Speculative decoding, summed over the sample's calls."""

    spec_accept_token_num: int = 0
    spec_draft_token_num: int = 0
    spec_verify_ct: int = 0
    completion_token_num: int = 0

    @property
    def spec_accept_rate(self) -> float:
        """Accepted draft tokens over proposed ones; 0.0 without any."""
        return self.spec_accept_token_num / self.spec_draft_token_num if self.spec_draft_token_num else 0.0

    @property
    def spec_accept_length(self) -> float:
        """Tokens sampled per verification; 0.0 without any."""
        return self.completion_token_num / self.spec_verify_ct if self.spec_verify_ct else 0.0

    def add(self, meta_info: MetaInfo | Mapping[str, Any]) -> None:
        """Count one more reply; one of a worker that does not speculate adds nothing."""
        meta = _meta_info(meta_info)
        if meta.spec_verify_ct is None:
            return
        self.spec_accept_token_num += meta.spec_accept_token_num or 0
        self.spec_draft_token_num += meta.spec_draft_token_num or 0
        self.spec_verify_ct += meta.spec_verify_ct
        self.completion_token_num += meta.completion_tokens or 0

    def to_dict(self) -> dict[str, int]:
        """Return the counts by name."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the counts in `values`; those that are missing are 0."""
        return cls(**_fields_in(cls, values))


@dataclass(slots=True, kw_only=True)
class PrefixCacheInfo:
    """The worker's prefix cache, summed over the sample's calls."""

    cached_tokens: int = 0
    total_prompt_tokens: int = 0

    @property
    def prefix_cache_hit_rate(self) -> float:
        """Cached prompt tokens over all prompt tokens; 0.0 without any."""
        return self.cached_tokens / self.total_prompt_tokens if self.total_prompt_tokens else 0.0

    def add(self, meta_info: MetaInfo | Mapping[str, Any]) -> None:
        """Count one more reply."""
        meta = _meta_info(meta_info)
        self.cached_tokens += meta.cached_tokens or 0
        self.total_prompt_tokens += meta.prompt_tokens or 0

    def to_dict(self) -> dict[str, int]:
        """Return the counts by name."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the counts in `values`; those that are missing are 0."""
        return cls(**_fields_in(cls, values))


_Status: TypeAlias = Status
_SpecInfo: TypeAlias = SpecInfo
_PrefixCacheInfo: TypeAlias = PrefixCacheInfo


class RewardKey(Protocol):
    """The part of the settings that tells which entry of a reward dict is the reward."""

    @property
    def reward_key(self) -> str | None:
        """Key into the dict, or None where rewards are plain numbers."""
        ...


@dataclass(kw_only=True)
class Sample:
    """One rollout of one prompt. Field names and defaults are slime's, and so plug-ins for slime fit.

    Beyond slime's: `weight_spans` tells for each response token which weights sampled it. A class without
    slots, because slime's plug-ins set attributes of their own.
    """

    group_index: int | None = None
    index: int | None = None
    rollout_id: int | None = None
    prompt: str | list[dict[str, Any]] = ""
    tokens: list[int] = field(default_factory=list)
    multimodal_inputs: dict[str, Any] | None = None
    multimodal_train_inputs: dict[str, Any] | None = None
    multimodal_train_input_id: str | None = None
    apply_chat_template_kwargs: dict[str, Any] | None = None
    response: str = ""
    response_length: int = 0
    label: Any = None
    reward: float | dict[str, Any] | None = None
    loss_mask: list[int] | None = None
    weight_versions: list[str] = field(default_factory=list)
    weight_spans: list[WeightSpan] = field(default_factory=list)
    rollout_log_probs: list[float] | None = None
    rollout_top_p_token_ids: Any = None
    rollout_top_p_token_offsets: Any = None
    rollout_routed_experts: Any = None
    remove_sample: bool = False
    teacher_log_probs: list[float] | None = None
    status: _Status = _Status.PENDING
    metadata: dict[str, Any] = field(default_factory=dict)
    generate_function_path: str | None = None
    custom_rm_path: str | None = None
    train_metadata: dict[str, Any] | None = None
    session_id: str | None = None
    non_generation_time: float = 0.0
    spec_info: _SpecInfo = field(default_factory=_SpecInfo)
    prefix_cache_info: _PrefixCacheInfo = field(default_factory=_PrefixCacheInfo)

    Status: ClassVar = Status
    SpecInfo: ClassVar = SpecInfo
    PrefixCacheInfo: ClassVar = PrefixCacheInfo

    def append_response_tokens(
        self,
        args: object = None,  # noqa: ARG002  slime's callers pass it
        *,
        tokens: Sequence[int],
        log_probs: Sequence[float] | None = None,
        trainable: bool = True,
        meta_info: MetaInfo | Mapping[str, Any] | None = None,
        text: str | None = None,
        update_terminal_info: bool = True,
    ) -> None:
        """Append tokens to the response: sampled ones (`trainable`), or an observation between turns.

        Sampled tokens come with one log-probability each, in nats, and get mask 1. Observations come without;
        they get mask 0, under which the 0.0 that holds their place is no log-probability. `meta_info` is the
        reply's: it adds weight versions and counts and, with `update_terminal_info`, sets the status.

        Raises: ValueError where lengths disagree, log-probabilities are missing or out of place, or the
        finish reason is none that SGLang has; the sample is then unchanged.
        """
        self._check_lengths()
        if self.response_length and self.rollout_log_probs is None:
            raise ValueError("the response so far has no log-probabilities to append to")
        if trainable and (log_probs is None or len(log_probs) != len(tokens)):
            found = "none" if log_probs is None else str(len(log_probs))
            raise ValueError(f"{len(tokens)} sampled tokens need as many log-probabilities, not {found}")
        if not trainable and log_probs is not None:
            raise ValueError("tokens that were not sampled have no log-probabilities: leave log_probs out")
        meta = _meta_info(meta_info) if meta_info is not None else None
        status = _status_at(meta.finish_reason) if meta is not None and update_terminal_info else None
        start = self.response_length

        mask = self.loss_mask if self.loss_mask is not None else [1] * start
        self.loss_mask = mask + [int(trainable)] * len(tokens)
        known = self.rollout_log_probs or []
        self.rollout_log_probs = known + (list(log_probs) if log_probs is not None else [0.0] * len(tokens))
        self.tokens = self.tokens + list(tokens)
        self.response_length += len(tokens)
        self.response += text or ""
        if meta is not None:
            self._add_meta(meta, start, len(tokens))
        if status is not None:
            self.status = status

    def update_from_meta_info(self, args: object, meta_info: MetaInfo | Mapping[str, Any]) -> None:  # noqa: ARG002
        """Take over what a reply tells besides its tokens: counts, weight version, and status.

        For functions that append the tokens themselves, as those for older versions of slime do. Which tokens
        the weights sampled is then not known: `weight_spans` stays as it is.

        Raises: ValueError where `meta_info` is none, or its finish reason none that SGLang has; the sample is
        then unchanged.
        """
        meta = _meta_info(meta_info)
        status = _status_at(meta.finish_reason)
        self._count(meta)
        if status is not None:
            self.status = status

    def validate(self) -> None:
        """Check that the sample's lists fit its tokens.

        Raises: ValueError naming what does not fit.
        """
        self._check_lengths()
        teacher = self.teacher_log_probs
        if teacher is not None and len(teacher) != self.response_length:
            raise ValueError(
                f"teacher_log_probs has {len(teacher)} entries for {self.response_length} tokens"
            )
        if self.loss_mask is not None and not {0, 1}.issuperset(self.loss_mask):
            raise ValueError("loss_mask holds something else than 0 and 1")
        end = 0
        for span in self.weight_spans:
            if not end <= span.start < span.end <= self.response_length:
                raise ValueError(
                    f"the weight span {span.start} to {span.end} overlaps another, or lies outside of the "
                    f"response, which has {self.response_length} tokens"
                )
            end = span.end

    def _check_lengths(self) -> None:
        if self.response_length > len(self.tokens):
            raise ValueError(f"the response has {self.response_length} tokens, the sample {len(self.tokens)}")
        for name in ("loss_mask", "rollout_log_probs"):
            values = getattr(self, name)
            if values is not None and len(values) != self.response_length:
                raise ValueError(f"{name} has {len(values)} entries for {self.response_length} tokens")

    def _add_meta(self, meta: MetaInfo, start: int, count: int) -> None:
        spans = meta.weight_versions
        if spans is None and meta.weight_version is not None:
            spans = [WeightSpan(version=meta.weight_version, start=0, end=count)]
        self.weight_spans = self.weight_spans + [
            WeightSpan(version=span.version, start=start + span.start, end=start + span.end)
            for span in spans or []
            if span.end > span.start
        ]
        self._count(meta)

    def _count(self, meta: MetaInfo) -> None:
        if meta.weight_version is not None:
            self.weight_versions = [*self.weight_versions, meta.weight_version]
        self.spec_info.add(meta)
        self.prefix_cache_info.add(meta)

    def fail(self, reason: str, code: str = "failed") -> None:
        """Mark the sample as failed, without a reward.

        `reason` goes to `metadata["error"]`, and the name under which it is counted to
        `metadata["error_code"]`.
        """
        self.status = Status.FAILED
        self.reward = None
        self.metadata = {**self.metadata, "error": reason, "error_code": code}

    def get_reward_value(self, args: RewardKey) -> float:
        """Return the reward as a number: the entry `args.reward_key` of a dict, or the reward itself.

        Raises: ValueError where there is no reward, or `reward_key` and the reward do not fit.
        """
        key, reward = args.reward_key, self.reward
        if reward is None:
            raise ValueError(f"sample {self.index} has no reward")
        if isinstance(reward, dict):
            if key is None:
                raise ValueError(f"the reward is a dict with {', '.join(reward)}: choose one by reward_key")
            if key not in reward:
                raise ValueError(f"the reward has no {key!r}, only {', '.join(reward)}")
            return float(reward[key])
        if key is not None:
            raise ValueError(f"reward_key is {key!r}, but the reward is the number {reward}")
        return float(reward)

    @property
    def effective_response_length(self) -> int:
        """Response tokens that are trained on: those with mask 1, or all without a mask."""
        return self.response_length if self.loss_mask is None else sum(self.loss_mask)

    def to_dict(self) -> dict[str, Any]:
        """Return the sample as plain values, attributes that plug-ins added included."""
        values = dict(vars(self))
        values["status"] = self.status.value
        values["spec_info"] = self.spec_info.to_dict()
        values["prefix_cache_info"] = self.prefix_cache_info.to_dict()
        values["weight_spans"] = [msgspec.to_builtins(span) for span in self.weight_spans]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the sample that `to_dict` wrote; unknown keys become attributes."""
        known = _fields_in(cls, values)
        known["status"] = Status(known.get("status", Status.PENDING))
        known["spec_info"] = SpecInfo.from_dict(known.get("spec_info") or {})
        known["prefix_cache_info"] = PrefixCacheInfo.from_dict(known.get("prefix_cache_info") or {})
        known["weight_spans"] = msgspec.convert(known.get("weight_spans") or [], list[WeightSpan])
        sample = cls(**known)
        for name, value in values.items():
            if name not in known:
                setattr(sample, name, value)
        return sample


def _fields_in(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    names = {item.name for item in dataclasses.fields(cls)}
    return {name: value for name, value in values.items() if name in names}


def _meta_info(meta: MetaInfo | Mapping[str, Any]) -> MetaInfo:
    if isinstance(meta, MetaInfo):
        return meta
    try:
        return msgspec.convert(meta, MetaInfo)
    except msgspec.ValidationError as error:
        raise ValueError(f"meta_info is not that of a reply: {error}") from None


def _status_at(reason: FinishReason | None) -> Status | None:
    if reason is None:
        return None
    if reason.type not in STATUS_AT_FINISH:
        known = ", ".join(STATUS_AT_FINISH)
        raise ValueError(f"unknown finish reason {reason.type!r}: known are {known}")
    return STATUS_AT_FINISH[FinishType(reason.type)]
