"""The body of a recorded call as it goes to the worker: prompts by token ids, log-probabilities asked for."""

from collections.abc import Sequence

from ..calls import JsonObject
from .prompts import Asked

LOGPROB_OPTIONS: dict[str, object] = {
    "logprob_start_len": -1,
    "top_logprobs_num": 0,
    # Not None: SGLang takes a list for one of lists only where the first of them is one.
    "token_ids_logprob": [],
}
"""What says for each prompt which log-probabilities it gets, with the values that ask for no more than those
of the sampled tokens."""

LOGPROB_FORMS = (
    "return_text_in_logprobs",
    "return_flat_raw_top_logprobs",
    "return_flat_raw_output_top_logprobs",
    "return_flat_raw_top_logprobs_b64",
)
"""What says for a whole call how log-probabilities are written."""


def forwarded_body(
    body: JsonObject, asked: Asked, prompts_ids: Sequence[list[int]], *, asks_logprobs: bool
) -> JsonObject:
    """Return what to send for `body`: `body` itself where nothing has to be changed.

    `asks_logprobs` says whether to ask for the log-probabilities that the client left off.
    """
    adds_logprobs = asks_logprobs and not asked.all_want_logprobs
    if not adds_logprobs and "text" not in body and body.get("input_ids") is not None:
        return body
    sent = dict(body)
    sent.pop("text", None)
    sent["input_ids"] = list(prompts_ids) if asked.is_batch else prompts_ids[0]
    if adds_logprobs:
        sent["return_logprob"] = True
        _ask_no_more_than_wanted(sent, asked)
    return sent


def _ask_no_more_than_wanted(sent: JsonObject, asked: Asked) -> None:
    """Take the options off the prompts whose client left `return_logprob` off, where they did nothing."""
    wanted = [prompt.wants_logprobs for prompt in asked.prompts]
    if not any(wanted):
        for option in (*LOGPROB_OPTIONS, *LOGPROB_FORMS):
            sent.pop(option, None)
        return
    for option, neutral in LOGPROB_OPTIONS.items():
        values = _for_each(option, sent.get(option), len(wanted))
        if values is not None and len(values) == len(wanted):
            sent[option] = [each if wants else neutral for each, wants in zip(values, wanted, strict=True)]


def _for_each(option: str, value: object, count: int) -> list[object] | None:
    """Return the option's value for each of `count` prompts, as SGLang reads it; None where it is not set."""
    if value is None:
        return None
    if option != "token_ids_logprob":
        return value if isinstance(value, list) else [value] * count
    if not isinstance(value, list):
        return [[value]] * count
    return value if value and isinstance(value[0], list) else [value] * count
