"""One sample: ask the worker for the rest of its response, and check the tokens.

Invariant: a sample's tokens and log-probabilities are those of the worker's reply. Nothing is re-tokenised,
guessed or filled in; a reply that does not tell them fails the sample.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from ..errors import RolloutError
from ..sglang import GenerateReply
from .client import RouterClient
from .config import RolloutConfig
from .problems import BadReply, TokensDiffer
from .questions import question_of
from .routed_experts import routed_experts_of
from .sample import UNFINISHED, Sample, Status
from .state import RolloutState, rollout_state

_HALF_A_CHARACTER: Final = "\ufffd"
"""What stands in a text for tokens that end within a character."""

Ask: TypeAlias = Callable[
    [RouterClient, Mapping[str, Any], Mapping[str, str] | None], Awaitable[GenerateReply]
]
"""`async f(client, payload, headers)`: the reply to one generation."""


async def generate(args: RolloutConfig, sample: Sample, sampling_params: Mapping[str, Any]) -> Sample:
    """Sample one response (or the rest of an aborted one) and append it to `sample`.

    With a tokenizer (`hf_checkpoint`) or tokens of its own, the sample is sent as token ids. Otherwise its
    text is, and the router's radix tree tells which tokens the worker read; they must end with those that
    it sampled. Images go with the token ids of their prompt. Without any budget left the sample is truncated
    and nothing is sent.

    Raises: RolloutError where the sample is finished already; BadReply and TokensDiffer, which are
    RolloutErrors too, where the reply does not hold what it must; UpstreamError where the router fails;
    RouterUnavailable where it stays away. The sample is then unchanged.
    """
    return await generate_by(RouterClient.generate, args, sample, sampling_params)


async def generate_by(
    ask: Ask, args: RolloutConfig, sample: Sample, sampling_params: Mapping[str, Any]
) -> Sample:
    """Do what `generate` does, with another way to `ask` the router."""
    if sample.status not in UNFINISHED:
        raise RolloutError(f"sample {sample.index} is {sample.status} already")
    budget = sampling_params["max_new_tokens"] - sample.response_length
    if budget <= 0:
        sample.status = Status.TRUNCATED
        return sample
    async with rollout_state(args) as state:
        question = await question_of(state, sample)
        known = question.tokens
        payload: dict[str, Any] = {
            "sampling_params": {**sampling_params, "max_new_tokens": budget},
            "return_logprob": True,
            **question.payload,
        }
        if args.use_rollout_routing_replay:
            payload["return_routed_experts"] = True
        headers = {"x-smg-routing-key": sample.session_id} if sample.session_id else None
        with state.running_request() as rid:
            reply = await _timed(state, rid, ask(state.client, payload | {"rid": rid}, headers))
            tokens, log_probs = sampled(reply)
            if known:
                question.check_read(reply)
            elif tokens:
                known = await _recorded_prompt(state.client, question.prompt, reply, rid)
        experts = routed_experts_of(args, reply, len(known) + len(tokens))
        is_torn = sample.response.endswith(_HALF_A_CHARACTER)
        _append(sample, known, reply, tokens, log_probs)
        if experts is not None:
            sample.rollout_routed_experts = experts
        sample.multimodal_train_inputs = question.train_inputs or sample.multimodal_train_inputs
        if is_torn and state.tokenizer is not None:  # cut off within a character: its halves make no text
            sample.response = state.tokenizer.decode(
                sample.tokens[-sample.response_length :],
                skip_special_tokens=args.rollout_skip_special_tokens,
            )
    return sample


async def _timed(state: RolloutState, rid: str, asked: Awaitable[GenerateReply]) -> GenerateReply:
    """Wait for the reply, and log when the request began and ended, however it does."""
    reply = None
    state.requests.begin(rid)
    try:
        reply = await asked
    finally:
        state.requests.end(rid, reply.meta_info if reply is not None else None)
    return reply


def sampled(reply: GenerateReply) -> tuple[list[int], list[float]]:
    """Return the token ids that `reply` sampled and their log-probabilities, in nats.

    Raises: BadReply where it does not tell both for every token, or has not ended; TokensDiffer where it
    names other tokens in `output_ids`.
    """
    entries = reply.meta_info.output_token_logprobs
    if entries is None:
        raise BadReply("the worker's reply has no log-probabilities, though they were asked for")
    if reply.meta_info.finish_reason is None:
        raise BadReply("the worker's reply does not tell why it ended")
    tokens = [token for _, token, _ in entries]
    log_probs = [log_prob for log_prob, _, _ in entries if log_prob is not None]
    if len(log_probs) != len(tokens):
        raise BadReply("the worker's reply has a token whose log-probability is no number")
    if reply.output_ids is not None and reply.output_ids != tokens:
        raise TokensDiffer("the worker's reply has log-probabilities of other tokens than its output_ids")
    return tokens, log_probs


async def _recorded_prompt(client: RouterClient, prompt: str, reply: GenerateReply, rid: str) -> list[int]:
    """Return the prompt's tokens as the router recorded them, once they are seen to lead to the reply."""
    if reply.text is None:
        raise BadReply("the worker has no tokenizer: give --hf-checkpoint, so that token ids are sent")
    tokens, log_probs = sampled(reply)
    recorded = await client.retrieve_from_text(prompt + reply.text, rid)
    size = len(recorded.tokens)
    if len(recorded.loss_mask) != size or len(recorded.rollout_logp) != size:
        raise TokensDiffer(f"the router's lists for request {rid} differ in length")
    start = size - len(tokens)
    _check_tail("tokens", recorded.tokens[max(start, 0) :], tokens, rid)
    _check_tail("log-probabilities", recorded.rollout_logp[start:], log_probs, rid)
    _check_tail("loss mask", recorded.loss_mask[start:], [1] * len(tokens), rid)
    if start == 0:
        raise TokensDiffer(f"the router recorded no prompt for request {rid}")
    return recorded.tokens[:start]


def _check_tail(what: str, recorded: Sequence[float], replied: Sequence[float], rid: str) -> None:
    if len(recorded) != len(replied):
        raise TokensDiffer(
            f"the router recorded {len(recorded)} tokens for request {rid}, "
            f"fewer than the {len(replied)} that were sampled"
        )
    for position, (ours, theirs) in enumerate(zip(recorded, replied, strict=True)):
        if ours != theirs:
            raise TokensDiffer(
                f"the router recorded other {what} than the worker replied for request {rid}: "
                f"{ours} and {theirs} at response token {position}"
            )


def _append(
    sample: Sample, prompt: list[int], reply: GenerateReply, tokens: list[int], log_probs: list[float]
) -> None:
    before = sample.tokens
    sample.tokens = prompt
    try:
        sample.append_response_tokens(
            tokens=tokens, log_probs=log_probs, meta_info=reply.meta_info, text=reply.text
        )
    except ValueError as error:
        sample.tokens = before
        raise BadReply(f"the worker's reply does not fit the sample: {error}") from None
