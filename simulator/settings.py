"""The settings of a simulated worker."""

from dataclasses import dataclass
from typing import Literal

from ..errors import ConfigError

FaultName = Literal[
    "refuse",
    "hang",
    "die_before_headers",
    "die_mid_reply",
    "queue_full",
    "slow_drip",
    "http_error",
    "close_after_reply",
]
"""The ways in which a worker can misbehave; `faults.py` tells what each does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """How a simulated worker listens, answers, and misbehaves. Times are in seconds."""

    host: str = "127.0.0.1"
    """Address to listen on."""

    port: int = 30001
    """Port to listen on; 0 takes any free one."""

    served_model_name: str = "espalier-simulated"
    """Model name that /v1/models and /model_info tell."""

    model_path: str = "espalier-simulated"
    """Model path that /model_info tells; an update of the weights changes it."""

    weight_version: str = "default"
    """Weight version at the start."""

    seed: int = 0
    """Seed of calls that carry no sampling_seed. Workers of different seeds sample different replies; greedy
    ones are equal."""

    accuracy: float = 0.6
    """Share of arithmetic prompts that are answered right, 0 to 1. Some prompts are always right and some
    always wrong, unless it is 0 or 1."""

    long_reply_rate: float = 0.06
    """Share of replies that ramble on for 300 to 1,500 tokens before they answer."""

    split_rate: float = 0.05
    """Share of tokens that are sampled as two smaller ones, so that re-tokenising gives other ids."""

    prefill_tokens_per_s: float = 8000.0
    """Prompt tokens read a second, cached ones not counted; 0 reads at once."""

    decode_step_s: float = 0.006
    """Time of one decoding step, which gives each running request one token; 0 together with
    --decode-step-per-request-s 0 decodes at once."""

    decode_step_per_request_s: float = 0.00035
    """Time that each running request adds to a decoding step."""

    slice_s: float = 0.02
    """How often the clock of prefill and decoding is looked at."""

    stream_interval: int = 1
    """Tokens between two events of a stream."""

    incremental_streaming_output: bool = False
    """Let the events of a stream carry what is new instead of everything so far."""

    image_tokens: int = 0
    """Tokens that stand for an image of `image_data`, in place of each <|endoftext|> of a prompt; 0: the
    model reads no images and takes no notice of them."""

    context_length: int = 32768
    """Longest prompt and reply together, in tokens."""

    max_total_tokens: int = 524288
    """Room for tokens of prompts and replies, as a real worker's KV cache."""

    max_running_requests: int = 256
    """Requests that decode at the same time; others wait."""

    max_queued_requests: int | None = None
    """Requests that may wait; one more is answered 503. Not set: no limit."""

    skip_tokenizer_init: bool = False
    """Take and give token ids only, no text."""

    api_key: str | None = None
    """Bearer key that every call but /health and /ready must carry."""

    check_model_path: bool = False
    """Answer 400 to an update of the weights whose model_path is not a folder."""

    health_probe_s: float = 1.0
    """Time that /health takes: the real one asks its own model for a token."""

    health_timeout_s: float = 20.0
    """How long /health waits for a sign of life, for example while generation is paused."""

    disconnect_poll_s: float = 4.0
    """How often it is looked whether the client of a call that does not stream is still there."""

    keep_alive_s: int = 5
    """Idle connections are closed after this time."""

    drain_s: float = 30.0
    """After SIGTERM, running requests get this long to end; then they are aborted."""

    fault: Literal[FaultName, "none"] = "none"
    """Misbehave from the start; POST /simulator/faults does it at run time, with all parameters."""

    fault_calls: int = 0
    """How many calls of /generate the fault hits; 0: until it is cleared."""

    fault_every: int = 1
    """Let the fault hit only every n-th call."""

    def __post_init__(self) -> None:
        """Refuse values that no worker can have."""
        for name in ("accuracy", "long_reply_rate", "split_rate"):
            _check(0 <= getattr(self, name) <= 1, name, "between 0 and 1", getattr(self, name))
        for name in (
            *("prefill_tokens_per_s", "decode_step_s", "decode_step_per_request_s", "health_probe_s"),
            *("health_timeout_s", "drain_s", "fault_calls", "image_tokens"),
        ):
            _check(0 <= getattr(self, name) < float("inf"), name, "0 or more", getattr(self, name))
        for name in ("slice_s", "disconnect_poll_s"):
            _check(0 < getattr(self, name) < float("inf"), name, "more than 0", getattr(self, name))
        for name in (
            *("context_length", "max_total_tokens", "max_running_requests", "stream_interval"),
            *("keep_alive_s", "fault_every"),
        ):
            _check(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        _check(0 <= self.port <= 65535, "port", "between 0 and 65535", self.port)
        if self.max_queued_requests is not None:
            _check(
                self.max_queued_requests >= 0, "max_queued_requests", "0 or more", self.max_queued_requests
            )


def _check(holds: bool, name: str, expected: str, value: object) -> None:  # noqa: FBT001  the claim itself
    if not holds:
        raise ConfigError(f"--{name.replace('_', '-')} must be {expected}, not {value}")
