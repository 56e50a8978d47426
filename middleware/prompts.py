"""What a `/generate` body asks for, as far as the tree must know: pure checks, no I/O.

What would kill a worker is refused here; everything else that is wrong is left to the worker to say.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import cast

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One prompt, by text or by ids (`ids` win where a body has both, as in SGLang)."""

    text: str | None
    ids: "Tokens | None"
    session_id: str | None
    wants_logprobs: bool
    skips_special_tokens: bool
    trims_stop: bool


def read_prompt(body: JsonObject, session_id: str | None, vocabulary_size: int | None) -> Prompt | Unrecorded:
    """Return the prompt of a body that can be recorded, or why it cannot.

    `session_id` is used where the body names none. `vocabulary_size` is None where it is not known.

    Raises: BadRequest for an empty prompt and for ids outside the vocabulary, in batches too.
    """
    ids, text = body.get("input_ids"), body.get("text")
    if ids is None and text is None:
        return Unrecorded.INPUT_EMBEDS if body.get("input_embeds") is not None else Unrecorded.MALFORMED
    checked = _check_ids(ids, vocabulary_size) if ids is not None else _check_text(text)
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


def _check_ids(ids: object, vocabulary_size: int | None) -> "Tokens | Unrecorded":
    if not isinstance(ids, list):
        return Unrecorded.MALFORMED
    if ids and all(isinstance(each, list) for each in ids):
        checked = [
            _check_prompt_ids(each, f"input_ids[{at}]", vocabulary_size) for at, each in enumerate(ids)
        ]
        return Unrecorded.MALFORMED if Unrecorded.MALFORMED in checked else Unrecorded.BATCH
    return _check_prompt_ids(ids, "input_ids", vocabulary_size)


def _check_prompt_ids(ids: Sequence[object], name: str, vocabulary_size: int | None) -> "Tokens | Unrecorded":
    if not ids:
        raise BadRequest(f"The prompt is empty: `{name}` must hold at least one token id")
    try:
        tokens = array("i", cast("Sequence[int]", ids))
        low, high = min(tokens), max(tokens)
    except TypeError:
        return Unrecorded.MALFORMED
    except OverflowError:
        low, high = -1, MAX_TOKEN_ID
    last = MAX_TOKEN_ID if vocabulary_size is None else vocabulary_size - 1
    if low < 0 or high > last:
        numbers = cast("Sequence[int]", ids)
        at = next(at for at, each in enumerate(numbers) if not 0 <= each <= last)
        raise BadRequest(
            f"`{name}[{at}]` is {numbers[at]}, which is outside the vocabulary: token ids go from 0 to {last}"
        )
    return tokens
