"""Wire types of SGLang's `/generate`, as far as Espalier reads them.

Source: captures of SGLang 0.5.23 under `tests/captures`. Fields that are not named here are ignored, so a
newer worker may say more; bodies that are passed on are never rebuilt from these types.
"""

from enum import StrEnum
from typing import TypeAlias

import msgspec

TokenLogprob: TypeAlias = tuple[float | None, int, str | None]
"""Log-probability in nats (None for the first prompt token and where it is no number), token id, text."""


class FinishType(StrEnum):
    """Why a generation ended."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


class FinishReason(msgspec.Struct, kw_only=True):
    """`meta_info.finish_reason`. `matched` is the stop token's id or the stop string."""

    type: str
    matched: int | str | list[int] | None = None
    length: int | None = None
    message: str | None = None
    status_code: int | None = None


class WeightSpan(msgspec.Struct, frozen=True, kw_only=True):
    """Output tokens `start` to `end` (exclusive) were sampled from the weights called `version`."""

    version: str
    start: int
    end: int


class MetaInfo(msgspec.Struct, kw_only=True):
    """`meta_info` of a reply or of one event of a stream."""

    id: str = ""
    finish_reason: FinishReason | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    weight_version: str | None = None
    weight_versions: list[WeightSpan] | None = None
    output_token_logprobs: list[TokenLogprob] | None = None
    e2e_latency: float | None = None
    routed_experts: str | None = None
    queue_time: float | None = None
    decode_throughput: float | None = None
    spec_accept_token_num: int | None = None
    spec_draft_token_num: int | None = None
    spec_verify_ct: int | None = None


class GenerateReply(msgspec.Struct, kw_only=True):
    """One generation. `text` is absent from a worker without tokenizer; `output_ids` is always there."""

    text: str | None = None
    output_ids: list[int] | None = None
    index: int | None = None
    meta_info: MetaInfo


decode_reply = msgspec.json.Decoder(GenerateReply).decode
"""Decode one generation. Raises msgspec.DecodeError, ValidationError included."""

decode_replies = msgspec.json.Decoder(list[GenerateReply]).decode
"""Decode the reply to a batch or to `n > 1`: one generation each, in request order, siblings together."""
