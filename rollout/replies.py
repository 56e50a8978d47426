"""What the router answers, read strictly: types, and the one place that turns a refusal into words."""

from typing import Any, Final

import msgspec

from ..errors import NoWorkerAvailable, UpstreamError
from .problems import Refused

MAX_ERROR_CHARS: Final = 500
"""How much of a refusal is repeated: enough for its reason, not for a page of HTML."""


class RecordedText(msgspec.Struct, frozen=True, kw_only=True):
    """The tokens behind a text, as the radix tree recorded them. All lists have the length of `tokens`.

    Where `loss_mask` is 0 (context), the `rollout_logp` entry is a place-holder and no log-probability.
    """

    tokens: list[int]
    loss_mask: list[int]
    rollout_logp: list[float]


class TreeStats(msgspec.Struct, frozen=True, kw_only=True):
    """Counters of the router's radix tree since it started, in tokens."""

    prompt_tokens_total: int
    reused_tokens_total: int

    def hit_rate_since(self, earlier: "TreeStats") -> float | None:
        """Return the share of prompt tokens that were reused since `earlier`; None without any prompt."""
        prompt_tokens = self.prompt_tokens_total - earlier.prompt_tokens_total
        if prompt_tokens <= 0:
            return None
        return (self.reused_tokens_total - earlier.reused_tokens_total) / prompt_tokens


decode_recorded_text = msgspec.json.Decoder(RecordedText).decode
decode_tree_stats = msgspec.json.Decoder(TreeStats).decode


def refusal(request: str, status: int, body: bytes) -> Refused | UpstreamError:
    """Return the error for a reply that is no success: ours to mend below 500, the router's above.

    `request` is the method and URL, for the message.
    """
    message = f"{request} answered {status}: {error_text(body)}"
    return Refused(message, status=status) if status < 500 else UpstreamError(message)


def has_no_worker(status: int, body: bytes) -> bool:
    """Tell whether a reply says that the router has nobody to send the call to."""
    return status == NoWorkerAvailable.status and NoWorkerAvailable.code.encode() in body


def error_text(body: bytes) -> str:
    """Return the sentence in an error body, whichever of SGLang's five shapes it has."""
    try:
        found: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        found = body.decode("utf-8", "replace")
    for key in ("error", "message", "detail"):
        if isinstance(found, dict) and key in found:
            found = found[key]
    text = found if isinstance(found, str) else msgspec.json.encode(found).decode()
    return " ".join(text.split())[:MAX_ERROR_CHARS] or "no reason given"
