"""The body of `/generate`: read, checked, and turned into one `Prompt` for each generation that it asks for.

The checks come in SGLang's order, each with its own error shape: the body's form (`FormError`), the contract
of names and types (`ContractError`), then the values (`ValueProblem`), which a stream reports as an event.
"""

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from .images import images_of
from .params import (
    Kind,
    SamplingParams,
    ValueProblem,
    check_kind,
    check_sampling_fields,
    sampling_params,
)

T = TypeVar("T")

MAX_BATCH = 4096
"""Generations that one call may ask for."""

_FIELDS: Mapping[str, Kind] = {
    "rid": Kind.STRINGS,
    "input_ids": Kind.TOKEN_IDS,
    "return_logprob": Kind.BOOLEANS,
    "logprob_start_len": Kind.INTEGERS_OR_ONE,
    "top_logprobs_num": Kind.INTEGERS_OR_ONE,
    "token_ids_logprob": Kind.ARRAY,
    "return_text_in_logprobs": Kind.BOOLEAN,
    "stream": Kind.BOOLEAN,
    "routed_dp_rank": Kind.INTEGER,
    "data_parallel_rank": Kind.INTEGER,
}


class FormError(ValueError):
    """The body has not the form of a request. Answered 400 with `{"object": "error", …}`."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class UnhandledError(RuntimeError):
    """The real worker fails here with a bare 500."""


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """One generation that is asked for: `text` or `input_ids`, how to sample, and what to tell."""

    rid: str
    text: str | None
    input_ids: list[int] | None
    params: SamplingParams
    return_logprob: bool
    logprob_start: int
    top_logprobs: int
    token_ids: tuple[int, ...]
    text_in_logprobs: bool
    images: tuple[str, ...] = ()


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A call of `/generate`. `many`: it is answered with a list, and its events carry an index."""

    prompts: list[Prompt]
    stream: bool
    many: bool


def check_form(body: object) -> dict[str, Any]:
    """Return the body of a request, of which form, names and types are as they must be.

    Raises: FormError, ContractError.
    """
    if not isinstance(body, dict):
        raise FormError("dataclass_type", "Input should be a dictionary or an instance of GenerateReqInput")
    _check_text(body.get("text"))
    if "stream" in body and body["stream"] is None:
        raise FormError("bool_type", "stream: Input should be a valid boolean")
    for name, kind in _FIELDS.items():
        if name in body:
            check_kind(body[name], kind)
    _check_ids(body.get("input_ids"))
    given = body.get("sampling_params")
    for params in given if isinstance(given, list) else [given]:
        if params is not None:
            check_kind(params, Kind.MAP)
            check_sampling_fields(params)
    return body


def read_request(body: dict[str, Any], *, vocabulary: int, skip_tokenizer: bool) -> GenerateRequest:
    """Return what a body that `check_form` has passed asks for.

    Raises: ValueProblem, UnhandledError.
    """
    _check_unsupported(body)
    texts, ids = _inputs(body)
    is_batch = texts is not None or ids is not None
    if not is_batch:
        texts = None if body.get("input_ids") is not None else [body["text"]]
        ids = [body["input_ids"]] if texts is None else None
    size = len(texts if texts is not None else ids or [])
    if skip_tokenizer and texts is not None:
        raise ValueProblem(
            "The engine initialized with skip_tokenizer_init=True cannot accept text prompts. Please provide "
            "input_ids or re-initialize the engine with skip_tokenizer_init=False."
        )
    params = [
        sampling_params(given or {}, vocabulary=vocabulary)
        for given in _spread(body.get("sampling_params"), size, "sampling_params", is_batch=is_batch)
    ]
    if skip_tokenizer and params[0].stop:
        raise ValueProblem(
            f"stop={list(params[0].stop)} is unavailable when skip_tokenizer_init=True (requires tokenizer "
            "to decode tokens to text for matching)."
        )
    copies = params[0].n
    if any(each.n != copies for each in params):
        raise ValueProblem("n must be the same in all sampling_params of a batch.")
    if size * copies > MAX_BATCH:
        raise ValueProblem(f"A call can ask for at most {MAX_BATCH} generations, got {size * copies}.")
    rids = _rids(body.get("rid"), size, copies, is_batch=is_batch)
    prompts = _prompts(body, texts, ids, params, rids, is_batch=is_batch)
    return GenerateRequest(
        prompts=prompts, stream=bool(body.get("stream", False)), many=is_batch or copies > 1
    )


def _prompts(
    body: dict[str, Any],
    texts: list[str] | None,
    ids: list[list[int]] | None,
    params: list[SamplingParams],
    rids: list[str],
    *,
    is_batch: bool,
) -> list[Prompt]:
    size, copies = len(params), params[0].n
    logprob = _spread(body.get("return_logprob"), size, "return_logprob", is_batch=is_batch)
    start = _spread(body.get("logprob_start_len"), size, "logprob_start_len", is_batch=is_batch)
    top = _spread(body.get("top_logprobs_num"), size, "top_logprobs_num", is_batch=is_batch)
    chosen = body.get("token_ids_logprob") or []
    images = images_of(body.get("image_data"), size, is_batch=is_batch)
    nested = bool(chosen) and isinstance(chosen[0], list)
    if nested and len(chosen) != size:
        raise ValueProblem("The length of token_ids_logprob should be equal to the batch size.")
    return [
        Prompt(
            rid=rids[i * copies + copy],
            text=texts[i] if texts is not None else None,
            input_ids=ids[i] if ids is not None else None,
            params=params[i],
            return_logprob=bool(logprob[i]),
            logprob_start=-1 if start[i] is None else start[i],
            top_logprobs=max(0, top[i] or 0),
            token_ids=_chosen_ids(chosen[i] if nested else chosen),
            text_in_logprobs=bool(body.get("return_text_in_logprobs")),
            images=images[i],
        )
        for i in range(size)
        for copy in range(copies)
    ]


def _inputs(body: dict[str, Any]) -> tuple[list[str] | None, list[list[int]] | None]:
    """Return the texts or the ids of a batch; both None where there is one prompt."""
    text, ids = body.get("text"), body.get("input_ids")
    if text is None and ids is None:
        raise ValueProblem("Either text, input_ids or input_embeds should be provided.")
    if ids is not None:
        if not ids or (isinstance(ids[0], list) and not all(ids)):
            raise ValueProblem("input_ids cannot be empty.")
        return None, ids if isinstance(ids[0], list) else None
    if text == []:
        raise ValueProblem("text cannot be empty.")
    return (text if isinstance(text, list) else None), None


def _rids(given: str | list[str] | None, size: int, copies: int, *, is_batch: bool) -> list[str]:
    if isinstance(given, list):
        if not is_batch:
            raise UnhandledError("a list of rids for one prompt")
        if len(given) != size:
            raise ValueProblem("The specified rids length mismatch with the batch_size for batch processing.")
        twice = sorted({rid for rid in given if given.count(rid) > 1})
        if twice:
            raise ValueProblem(f"Duplicate request IDs detected within the request: {twice}")
    if given is None or copies > 1:
        return [uuid.uuid4().hex for _ in range(size * copies)]
    if isinstance(given, str):
        return [f"{given}_{i}" for i in range(size)] if is_batch else [given]
    return given


def _spread(value: T | list[T] | None, size: int, name: str, *, is_batch: bool) -> Sequence[Any]:
    if not isinstance(value, list):
        return [value] * size
    if not is_batch:
        raise UnhandledError(f"a list of {name} for one prompt")
    if len(value) != size:
        raise ValueProblem(f"The length of {name} should be equal to the batch size.")
    return value


def _chosen_ids(value: Sequence[object]) -> tuple[int, ...]:
    chosen = tuple(item for item in value if isinstance(item, int) and not isinstance(item, bool))
    if len(chosen) != len(value):
        raise ValueProblem("token_ids_logprob must be a list of token ids.")
    return chosen


def _check_unsupported(body: dict[str, Any]) -> None:
    if body.get("lora_path"):
        raise ValueProblem(
            f"LoRA adapter '{body['lora_path']}' was requested, but LoRA is not enabled. Please "
            "launch the server with --enable-lora flag and preload adapters using --lora-paths or "
            "/load_lora_adapter endpoint."
        )
    if body.get("return_hidden_states"):
        raise ValueProblem(
            "The server is not configured to return hidden states. Please set `--return-hidden-states-mode "
            "last`, `--return-hidden-states-mode full`, or the legacy `--enable-return-hidden-states` flag."
        )
    rank = body.get("routed_dp_rank", body.get("data_parallel_rank"))
    if rank is not None and rank != 0:
        raise ValueProblem(f"routed_dp_rank={rank} out of range [0, 1)")


def _check_text(text: object) -> None:
    parts = text if isinstance(text, list) else [text]
    if text is not None and not all(isinstance(part, str) for part in parts):
        raise FormError("string_type", "text: Input should be a valid string or a list of strings")


def _check_ids(ids: object) -> None:
    if not isinstance(ids, list):
        return
    rows = ids if ids and isinstance(ids[0], list) else [ids]
    for row in rows:
        kinds = set(map(type, row)) if isinstance(row, list) else {type(row)}
        if kinds - {int}:
            name = next(kind.__name__ for kind in kinds if kind is not int)
            raise FormError("value_error", f"input_ids: elements must be int or list; got {name}")
