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

_FLAGS = (None, False, True)


class Unrecorded(StrEnum):
    """Why a call passes through untouched."""

    BEAM_SEARCH = "beam_search"
    INPUT_EMBEDS = "input_embeds"
    MALFORMED = "malformed"
    MULTIMODAL = "multimodal"
    NO_TOKENIZER = "no_tokenizer"
    SERVER_SESSION = "server_session"
    UNEXPECTED_ERROR = "unexpected_error"


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt, by text or by ids (`ids` win where a body has both, as in SGLang)."""

    name: str
    """Where it stands in the body: `text`, `input_ids[3]`."""
    text: str | None
    ids: "Tokens | None"
    session_id: str | None
    wants_logprobs: bool
    skips_special_tokens: bool
    trims_stop: bool
    stop_strings: tuple[str, ...]


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What a body asks for: `samples` generations of each of its prompts.

    They are told in the order of the prompts, the samples of a prompt together.
    """

    prompts: tuple[Prompt, ...]
    samples: int
    is_batch: bool
    """Whether the prompts came as a list, be it of one."""
    is_streamed: bool
    all_want_logprobs: bool
    """Whether nothing has to be taken out of the reply."""

    @property
    def is_many(self) -> bool:
        """Whether the reply is a list, and the events of a stream carry an index."""
        return self.is_batch or self.samples > 1

    @property
    def generations(self) -> int:
        """How many generations the reply tells of."""
        return len(self.prompts) * self.samples


class Vocabulary(NamedTuple):
    """Which ids a worker knows: those below `size` (None where that is not known), and those it gave itself.

    The size may be the tokenizer's, and a model may sample ids that have no name there; so an id beyond it is
    let through where `recorded_length`, the number of ids at a prompt's beginning that were read or sampled
    before in this order, covers it.
    """

    size: int | None
    recorded_length: Callable[[Tokens], int]


class _Given(NamedTuple):
    """The prompts of a body: one after the other, or one alone."""

    prompts: "Sequence[str | Tokens]"
    is_batch: bool


def read_asked(body: JsonObject, session_id: str | None, vocabulary: Vocabulary) -> Asked | Unrecorded:
    """Return what a body asks for, if that can be recorded, or why it cannot.

    `session_id` is used where the body names none.

    Raises: BadRequest for an empty prompt and for ids outside the vocabulary, in batches too.
    """
    given = _given(body, vocabulary)
    if isinstance(given, Unrecorded):
        return given
    reason = _unrecorded(body)
    if reason is not None:
        return reason
    count = len(given.prompts)
    params = _each(body.get("sampling_params"), count, is_batch=given.is_batch)
    flags = _each(body.get("return_logprob"), count, is_batch=given.is_batch)
    if params is None or flags is None:
        return Unrecorded.MALFORMED
    named = body.get("session_id")
    session_id = named if isinstance(named, str) and named else session_id
    field = "text" if body.get("input_ids") is None else "input_ids"
    prompts: list[Prompt] = []
    samples: object = None
    for at, prompt in enumerate(given.prompts):
        sampling = {} if params[at] is None else params[at]
        if not isinstance(sampling, dict) or flags[at] not in _FLAGS:
            return Unrecorded.MALFORMED
        if sampling.get("beam_width") not in (None, 1):
            return Unrecorded.BEAM_SEARCH
        own_samples = 1 if sampling.get("n") is None else sampling["n"]
        if samples not in (None, own_samples):
            return Unrecorded.MALFORMED
        samples = own_samples
        name = f"{field}[{at}]" if given.is_batch else field
        prompts.append(_prompt(name, prompt, session_id, sampling, wants_logprobs=flags[at] is True))
    if (
        type(samples) is not int
        or samples < 1
        or (samples > 1 and isinstance(body.get("return_logprob"), list))
    ):
        return Unrecorded.MALFORMED  # as the worker will say
    return Asked(
        prompts=tuple(prompts),
        samples=samples,
        is_batch=given.is_batch,
        is_streamed=body.get("stream") is True,
        all_want_logprobs=all(prompt.wants_logprobs for prompt in prompts),
    )


def _prompt(
    name: str, prompt: "str | Tokens", session_id: str | None, sampling: JsonObject, *, wants_logprobs: bool
) -> Prompt:
    return Prompt(
        name=name,
        text=prompt if isinstance(prompt, str) else None,
        ids=None if isinstance(prompt, str) else prompt,
        session_id=session_id,
        wants_logprobs=wants_logprobs,
        skips_special_tokens=sampling.get("skip_special_tokens", True) is not False,
        trims_stop=sampling.get("no_stop_trim", False) is not True,
        stop_strings=_strings(sampling.get("stop")),
    )


def _unrecorded(body: JsonObject) -> Unrecorded | None:
    if body.get("stream") not in _FLAGS:
        return Unrecorded.MALFORMED
    if body.get("input_embeds") is not None:
        return Unrecorded.INPUT_EMBEDS
    for key in ("image_data", "video_data", "audio_data"):
        value = body.get(key)
        if any(value) if isinstance(value, list) else value:  # a batch may name none for each of its prompts
            return Unrecorded.MULTIMODAL
    if body.get("session_params") is not None:
        return Unrecorded.SERVER_SESSION
    return None


def _each(value: object, count: int, *, is_batch: bool) -> list[object] | None:
    """Return a parameter for each of `count` prompts: its own, or one for all. None where it does not fit."""
    if not isinstance(value, list):
        return [value] * count
    return value if is_batch and len(value) == count else None


def _strings(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    values = value if isinstance(value, list) else [value]
    return tuple(each for each in values if isinstance(each, str))


def _given(body: JsonObject, vocabulary: Vocabulary) -> _Given | Unrecorded:
    ids, text = body.get("input_ids"), body.get("text")
    if ids is None and text is None:
        return Unrecorded.INPUT_EMBEDS if body.get("input_embeds") is not None else Unrecorded.MALFORMED
    if ids is None:
        return _check_text(text)
    if ids == [] and body.get("session_params") is not None:
        return Unrecorded.SERVER_SESSION  # whose history is the prompt
    given = _check_ids(ids, vocabulary)
    if text is not None and not isinstance(given, Unrecorded):
        texts = _check_text(text)
        if isinstance(texts, Unrecorded) or texts.is_batch != given.is_batch:
            return Unrecorded.MALFORMED
        if len(texts.prompts) != len(given.prompts):
            return Unrecorded.MALFORMED
    return given


def _check_text(text: object) -> _Given | Unrecorded:
    if isinstance(text, str):
        if not text:
            raise BadRequest("The prompt is empty: `text` must hold at least one character")
        return _Given([text], is_batch=False)
    if not isinstance(text, list) or not all(isinstance(each, str) for each in text):
        return Unrecorded.MALFORMED
    if not text:
        raise BadRequest("The batch is empty: `text` must hold at least one prompt")
    for at, each in enumerate(text):
        if not each:
            raise BadRequest(f"The prompt is empty: `text[{at}]` must hold at least one character")
    return _Given(text, is_batch=True)


def _check_ids(ids: object, vocabulary: Vocabulary) -> _Given | Unrecorded:
    if not isinstance(ids, list):
        return Unrecorded.MALFORMED
    is_batch = bool(ids) and all(isinstance(each, list) for each in ids)
    checked: list[Tokens] = []
    is_malformed = False
    for at, each in enumerate(ids if is_batch else [ids]):
        tokens = _check_prompt_ids(each, f"input_ids[{at}]" if is_batch else "input_ids", vocabulary)
        if tokens is None:
            is_malformed = True
        else:
            checked.append(tokens)
    return Unrecorded.MALFORMED if is_malformed else _Given(checked, is_batch=is_batch)


def _check_prompt_ids(ids: Sequence[object], name: str, vocabulary: Vocabulary) -> "Tokens | None":
    """Return the ids as tokens, or None where they are no integers."""
    if not ids:
        raise BadRequest(f"The prompt is empty: `{name}` must hold at least one token id")
    numbers = cast("Sequence[int]", ids)
    last = MAX_TOKEN_ID if vocabulary.size is None else vocabulary.size - 1
    try:
        tokens = array("i", numbers)
    except TypeError:
        return None
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
