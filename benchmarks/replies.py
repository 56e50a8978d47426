"""Replies of a worker, as bytes, for benchmarks."""

import struct

import msgspec


def small_reply(size_bytes: int) -> bytes:
    """Return a reply of about `size_bytes`: one sampled token and padding."""
    return msgspec.json.encode(generation(1) | {"pad": "x" * max(0, size_bytes - 466)})


def long_reply(tokens: int) -> bytes:
    """Return a reply of `tokens` tokens with log-probabilities, written as SGLang 0.5.23 writes it."""
    return msgspec.json.encode(generation(tokens))


def generation(tokens: int) -> dict[str, object]:
    """Return a reply before it is written. Log-probabilities are float32 numbers, as the engine's are."""
    ids = [40 + index % 400 for index in range(tokens)]
    logprobs = [[_float32(-0.001 - index % 997 * 0.01), token, None] for index, token in enumerate(ids)]
    return {
        "text": "word " * tokens,
        "output_ids": ids,
        "meta_info": {
            "id": "0123456789abcdef0123456789abcdef",
            "finish_reason": {"type": "length", "length": tokens},
            "weight_version": "default",
            "num_retractions": 0,
            "input_token_logprobs": [],
            "output_token_logprobs": logprobs,
            "output_token_logprobs_length": tokens,
            "reasoning_tokens": 0,
            "completion_tokens": tokens,
            "cached_tokens": 0,
            "weight_versions": [{"version": "default", "start": 0, "end": tokens}],
            "e2e_latency": 0.01,
        },
    }


def _float32(value: float) -> float:
    rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    return rounded
