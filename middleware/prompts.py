"""What a `/generate` body asks for, as far as the tree must know: pure checks, no I/O.

What would kill a worker is refused here; everything else that is wrong is left to the worker to say.
"""

from array import array
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import NamedTuple, cast

import msgspec

from ..calls import JsonObject
from ..errors import BadRequest
from .segments import Tokens

MAX_TOKEN_ID = 2**31 - 1
"""No vocabulary is larger: engines keep token ids in 32-bit integers."""


class Unrecorded(StrEnum):
    """Why a call passes through untouched."""

    BATCH = "batch"
    INPUT_EMBEDS = "input_embeds"
    MALFORMED = "malformed"
    MULTIMODAL = "multimodal"
    NO_TOKENIZER = "no_tokenizer"
    PARALLEL_SAMPLES = "parallel_samples"
    SERVER_SESSION = "server_session"
    STREAMED = "streamed"
    UNEXPECTED_ERROR = "unexpected_error"


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt, by text or by ids (`ids` win where a body has both, as in SGLang)."""

    text: str | None
    ids: "Tokens | None"
    session_id: str | None
    wants_logprobs: bool
    skips_special_tokens: bool
    trims_stop: bool


class Vocabulary(NamedTuple):
    """Which ids a worker knows: those below `size` (None where that is not known), and those it gave itself.

    The size may be the tokenizer's, and a model may sample ids that have no name there; so an id beyond it is
    let through where `recorded_length`, the number of ids at a prompt's beginning that were read or sampled
    before in this order, covers it.
    """

    size: int | None
    recorded_length: Callable[[Tokens], int]


def read_prompt(body: JsonObject, session_id: str | None, vocabulary: Vocabulary) -> Prompt | Unrecorded:
    """Return the prompt of a body that can be recorded, or why it cannot.

    `session_id` is used where the body names none.

    Raises: BadRequest for an empty prompt and for ids outside the vocabulary, in batches too.
    """
    ids, text = body.get("input_ids"), body.get("text")
    if ids is None and text is None:
        return Unrecorded.INPUT_EMBEDS if body.get("input_embeds") is not None else Unrecorded.MALFORMED
    checked = _check_ids(ids, vocabulary) if ids is not None else _check_text(text)
    if isinstance(checked, Unrecorded):
        return checked
    reason = _unrecorded(body)
    if reason is not None:
        return reason
    sampling_params = body.get("sampling_params")
    params = sampling_params if isinstance(sampling_params, dict) else {}
    given = body.get("session_id")
    return Prompt(
        text=checked if isinstance(checked, str) else None,
        ids=None if isinstance(checked, str) else checked,
        session_id=given if isinstance(given, str) and given else session_id,
        wants_logprobs=body.get("return_logprob") is True,
        skips_special_tokens=params.get("skip_special_tokens", True) is not False,
        trims_stop=params.get("no_stop_trim", False) is not True,
    )


def _unrecorded(body: JsonObject) -> Unrecorded | None:
    sampling_params = body.get("sampling_params")
    if sampling_params is not None and not isinstance(sampling_params, dict):
        return Unrecorded.MALFORMED
    if any(body.get(flag) not in (None, False, True) for flag in ("stream", "return_logprob")):
        return Unrecorded.MALFORMED
    if body.get("stream"):
        return Unrecorded.STREAMED
    if sampling_params and sampling_params.get("n") not in (None, 1):
        return Unrecorded.PARALLEL_SAMPLES
    if body.get("input_embeds") is not None:
        return Unrecorded.INPUT_EMBEDS
    if any(body.get(key) for key in ("image_data", "video_data", "audio_data")):
        return Unrecorded.MULTIMODAL
    if body.get("session_params") is not None:
        return Unrecorded.SERVER_SESSION
    return None


def _check_text(text: object) -> str | Unrecorded:
    if isinstance(text, str):
        if not text:
            raise BadRequest("The prompt is empty: `text` must hold at least one character")
        return text
    if not isinstance(text, list) or not all(isinstance(each, str) for each in text):
        return Unrecorded.MALFORMED
    if not text:
        raise BadRequest("The batch is empty: `text` must hold at least one prompt")
    for at, each in enumerate(text):
        if not each:
            raise BadRequest(f"The prompt is empty: `text[{at}]` must hold at least one character")
    return Unrecorded.BATCH


def _check_ids(ids: object, vocabulary: Vocabulary) -> "Tokens | Unrecorded":
    if not isinstance(ids, list):
        return Unrecorded.MALFORMED
    if ids and all(isinstance(each, list) for each in ids):
        checked = [_check_prompt_ids(each, f"input_ids[{at}]", vocabulary) for at, each in enumerate(ids)]
        return Unrecorded.MALFORMED if Unrecorded.MALFORMED in checked else Unrecorded.BATCH
    return _check_prompt_ids(ids, "input_ids", vocabulary)


def _check_prompt_ids(ids: Sequence[object], name: str, vocabulary: Vocabulary) -> "Tokens | Unrecorded":
    if not ids:
        raise BadRequest(f"The prompt is empty: `{name}` must hold at least one token id")
    numbers = cast("Sequence[int]", ids)
    last = MAX_TOKEN_ID if vocabulary.size is None else vocabulary.size - 1
    try:
        tokens = array("i", numbers)
    except TypeError:
        return Unrecorded.MALFORMED
    except OverflowError:
        _check_range(numbers, 0, name, last)
        raise
    if min(tokens) < 0 or max(tokens) > last:
        _check_range(numbers, vocabulary.recorded_length(tokens), name, last)
    return tokens


def _check_range(ids: Sequence[int], start: int, name: str, last: int) -> None:
    """Raise BadRequest for the first id from `start` on that is negative or greater than `last`."""
    for at in range(start, len(ids)):
        if not 0 <= ids[at] <= last:
            raise BadRequest(
                f"`{name}[{at}]` is {ids[at]}, which is outside the vocabulary: "
                f"token ids go from 0 to {last} (radix_tree.vocabulary_size)"
            )
