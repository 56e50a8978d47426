"""On-policy distillation: a teacher tells how likely it finds what the student sampled.

Source: slime's `on_policy_distillation`, which takes the last log-probabilities of a reply without a look at
their tokens. Here each is checked to be that of the sample's token.
"""

import math
from typing import Final
from urllib.parse import urlsplit

import msgspec

from ...sglang import TokenLogprob
from ..config import RolloutConfig
from ..problems import RewardFailed
from ..sample import Sample
from .grader import ask_grader
from .hub import rewards

NAME: Final = "on_policy_distillation"

MAX_REPLY_BYTES: Final = 256 << 20
"""About 60 bytes a token: room for responses of several million tokens."""


class _MetaInfo(msgspec.Struct):
    input_token_logprobs: list[TokenLogprob]


class _Reply(msgspec.Struct):
    meta_info: _MetaInfo


_decode = msgspec.json.Decoder(_Reply).decode


@rewards.register(NAME)
async def on_policy_distillation(args: RolloutConfig, sample: Sample) -> float:
    """Set the sample's `teacher_log_probs`, one for each response token, in nats; return the reward 0.0.

    The teacher is the SGLang worker (or the router before several) at `rm_url`; of a URL without a path,
    `/generate` is asked. It must have the student's tokenizer. Observations get theirs too: what is trained
    on is the loss mask's to say.

    Raises: RewardFailed where there is no `rm_url`, no prompt token, or the teacher does not answer with the
    log-probabilities of exactly these tokens; as `remote`, where it does not answer.
    """
    if args.rm_url is None:
        raise RewardFailed(f"the reward {NAME!r} needs --rm-url, the URL of the teacher's SGLang server")
    start = len(sample.tokens) - sample.response_length
    if start < 1:
        raise RewardFailed(f"the reward {NAME!r} needs a prompt: a first token has no log-probability")
    if not sample.response_length:
        sample.teacher_log_probs = []
        return 0.0
    question = {
        "input_ids": sample.tokens,
        "sampling_params": {"temperature": 0, "max_new_tokens": 0, "skip_special_tokens": False},
        "return_logprob": True,
        "logprob_start_len": start - 1,  # the first that is told has no log-probability
    }
    reply = await ask_grader(
        _generate_url(args.rm_url), msgspec.json.encode(question), max_reply_bytes=MAX_REPLY_BYTES
    )
    sample.teacher_log_probs = _log_probs(reply, sample.tokens[start:], args.rm_url)
    return 0.0


def _generate_url(url: str) -> str:
    return f"{url.rstrip('/')}/generate" if urlsplit(url).path in ("", "/") else url


def _log_probs(reply: bytes, tokens: list[int], url: str) -> list[float]:
    """Return the log-probabilities of `tokens`, with which the reply's list must end."""
    try:
        entries = _decode(reply).meta_info.input_token_logprobs[1:]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RewardFailed(f"the teacher at {url} answered no log-probabilities: {error}") from None
    if len(entries) != len(tokens):
        raise RewardFailed(
            f"the teacher at {url} told {len(entries)} log-probabilities for {len(tokens)} response tokens"
        )
    found: list[float] = []
    for position, ((log_prob, token, _), expected) in enumerate(zip(entries, tokens, strict=True)):
        if token != expected:
            raise RewardFailed(
                f"the teacher at {url} read token {token} where the response has {expected}, at response "
                f"token {position}: it must have the student's tokenizer"
            )
        if log_prob is None or not math.isfinite(log_prob):
            raise RewardFailed(
                f"the teacher at {url} told no finite log-probability of response token {position}"
            )
        found.append(log_prob)
    return found
