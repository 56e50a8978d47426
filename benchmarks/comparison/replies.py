"""What a worker answers, written as SGLang 0.5.23 writes it: whole, or as the events of a stream."""

import struct
from typing import Final

import msgspec

MAX_EVENTS: Final = 64
"""Events of a long streamed reply: as with `stream_interval` 16 for 1,024 tokens, 256 for 16,384."""

END_OF_STREAM: Final = b"data: [DONE]\n\n"


def whole_reply(tokens: int) -> bytes:
    """Return a reply of `tokens` tokens with log-probabilities."""
    return msgspec.json.encode(_generation(0, tokens, tokens))


def stream_events(tokens: int) -> list[bytes]:
    """Return the events of a streamed reply of `tokens` tokens, and the end of the stream.

    Each has what is new, as with SGLang's `--incremental-streaming-output`.
    """
    step = -(-tokens // min(tokens, MAX_EVENTS))
    starts = range(0, tokens, step)
    events = [_generation(start, min(start + step, tokens), tokens) for start in starts]
    return [b"data: %b\n\n" % msgspec.json.encode(event) for event in events] + [END_OF_STREAM]


def _generation(start: int, end: int, tokens: int) -> dict[str, object]:
    """Return what tells of the tokens from `start` to `end` of `tokens`. Log-probabilities are float32."""
    ids = [40 + index % 400 for index in range(start, end)]
    logprobs = [
        [_float32(-0.001 - index % 997 * 0.01), ids[index - start], None] for index in range(start, end)
    ]
    is_last = end == tokens
    meta: dict[str, object] = {
        "id": "0123456789abcdef0123456789abcdef",
        "finish_reason": {"type": "length", "length": tokens} if is_last else None,
        "weight_version": "default",
        "num_retractions": 0,
        "input_token_logprobs": [],
        "output_token_logprobs": logprobs,
        "output_token_logprobs_length": end,
        "reasoning_tokens": 0,
        "completion_tokens": end,
        "cached_tokens": 0,
    }
    if is_last:
        meta |= {"weight_versions": [{"version": "default", "start": 0, "end": tokens}], "e2e_latency": 0.01}
    return {"text": "word " * (end - start), "output_ids": ids, "meta_info": meta}


def _float32(value: float) -> float:
    rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    return rounded
