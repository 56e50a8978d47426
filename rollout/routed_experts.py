"""Which experts a mixture-of-experts model chose for each token, to be chosen again in training.

Format, as SGLang has it in `meta_info.routed_experts` (servers with `--enable-return-routed-experts`): base64
of little-endian int32, [tokens - 1, layers, topk], for all tokens of prompt and response but the last, which
nothing has read yet. A call that resumes a response tells those of all tokens again.

Source: slime's `--use-rollout-routing-replay`.
"""

import base64
import binascii
from typing import TYPE_CHECKING, Any, TypeAlias

from ..errors import ConfigError
from ..sglang import FinishType, GenerateReply
from .config import RolloutConfig
from .problems import BadReply

if TYPE_CHECKING:
    import numpy as np

    Array: TypeAlias = np.ndarray[Any, Any]


def routed_experts_of(args: RolloutConfig, reply: GenerateReply, tokens: int) -> "Array | None":
    """Return the experts of all but the last of a sample's tokens, of which there are `tokens` now.

    None where the settings do not ask for them, and where a call was aborted before it could tell: the one
    that resumes it tells all.

    Raises: as `decode_routed_experts`.
    """
    if not args.use_rollout_routing_replay:
        return None
    meta = reply.meta_info
    was_aborted = meta.finish_reason is not None and meta.finish_reason.type == FinishType.ABORT
    if meta.routed_experts is None and was_aborted:
        return None
    assert args.num_layers is not None
    assert args.moe_router_topk is not None
    return decode_routed_experts(
        meta.routed_experts, tokens=tokens, layers=args.num_layers, topk=args.moe_router_topk
    )


def decode_routed_experts(encoded: str | None, *, tokens: int, layers: int, topk: int) -> "Array":
    """Return the experts as int32 [tokens - 1, layers, topk]; the array may not be written to.

    Raises: BadReply where there are none, or not as many; ConfigError where numpy is not installed.
    """
    try:
        import numpy as np  # noqa: PLC0415  only replayed routing needs the package
    except ModuleNotFoundError:
        raise ConfigError("--use-rollout-routing-replay needs numpy: pip install 'espalier[numpy]'") from None
    if encoded is None:
        raise BadReply(
            "the worker's reply has no routed_experts: run workers with --enable-return-routed-experts"
        )
    try:
        content = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadReply(f"the worker's routed_experts are no base64: {error}") from None
    shape = (tokens - 1, layers, topk)
    expected = (tokens - 1) * layers * topk * 4
    if len(content) != expected:
        raise BadReply(
            f"the worker's routed_experts have {len(content)} bytes, not the {expected} of int32 "
            f"{list(shape)}: check --num-layers and --moe-router-topk"
        )
    return np.frombuffer(content, "<i4").reshape(shape)
