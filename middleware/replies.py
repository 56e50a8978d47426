"""A worker's reply to `/generate`: what was sampled, and the reply as the client asked for it."""

import struct
from array import array
from collections.abc import AsyncIterator
from typing import NamedTuple

import msgspec

from ..calls import ByteStream, Reply
from ..errors import EspalierError
from ..sglang import FinishReason, GenerateReply, MetaInfo, WeightSpan, decode_reply
from .logprobs import cut_logprobs, pack, pack_logprobs
from .prompts import Prompt
from .segments import Logprobs, Tokens
from .tokenizer import Tokenizer
from .tree import Sampled

LOGPROB_KEYS = frozenset(
    {
        "input_token_logprobs",
        "output_token_logprobs",
        "output_token_logprobs_length",
        "input_top_logprobs",
        "output_top_logprobs",
        "input_token_ids_logprobs",
        "output_token_ids_logprobs",
    }
)
"""What `return_logprob` adds to `meta_info`."""

_decode_raw_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


class _Head(msgspec.Struct, kw_only=True):
    """A reply whose tokens are known already."""

    text: str | None = None
    meta_info: MetaInfo


_decode_head = msgspec.json.Decoder(_Head).decode


class Unrecordable(EspalierError):
    """A reply that contradicts itself or its prompt: it goes to the client, and not into the tree."""


class Answer(NamedTuple):
    """What was sampled, and the reply's bytes, which may lack the log-probabilities' entries."""

    sampled: Sampled
    content: bytes


def read_answer(content: bytes, prompt: Prompt, tokenizer: Tokenizer | None, *, prompt_tokens: int) -> Answer:
    """Return what the reply `content` to `prompt`, sent as `prompt_tokens` ids, says was sampled.

    Raises: Unrecordable where it does not say so, says two things, or answers a prompt of another length: a
    worker may cut off what is too long for it. One that read nothing names no length.
    """
    cut = cut_logprobs(content)
    head: _Head | GenerateReply
    logprobs: Logprobs | None
    try:
        if cut is not None:
            tokens, logprobs, content = cut
            head = _decode_head(content)
        else:
            head = reply = decode_reply(content)
            tokens, logprobs = _tokens_and_logprobs(reply)
    except msgspec.DecodeError as error:
        raise Unrecordable(f"not one generation: {error}") from None
    except struct.error as error:
        raise Unrecordable(f"token ids or log-probabilities out of range: {error}") from None
    meta = head.meta_info
    if not meta.id:
        raise Unrecordable("meta_info has no id")
    if meta.prompt_tokens not in (None, prompt_tokens):
        raise Unrecordable(f"the worker read {meta.prompt_tokens} of {prompt_tokens} prompt tokens")
    if meta.completion_tokens is not None and meta.completion_tokens != len(tokens):
        raise Unrecordable("completion_tokens does not count the sampled tokens")
    stop, trimmed_tokens, cuts_token = _trimmed_stop(
        meta.finish_reason, tokens, head.text or "", prompt, tokenizer
    )
    sampled = Sampled(
        rid=meta.id,
        session_id=prompt.session_id,
        tokens=tokens,
        logprobs=logprobs,
        weight_versions=_weight_versions(meta, len(tokens)),
        finish_type=meta.finish_reason.type if meta.finish_reason is not None else None,
        text=head.text,
        trimmed_stop=stop,
        trimmed_tokens=trimmed_tokens,
        cuts_token=cuts_token,
        skips_special_tokens=prompt.skips_special_tokens,
    )
    return Answer(sampled, content)


def without_logprobs(content: bytes) -> bytes:
    """Return the reply as the worker would have given it without `return_logprob`; what stays, stays as is.

    Raises: msgspec.DecodeError where it is no JSON object with a `meta_info`.
    """
    reply = _decode_raw_object(content)
    if "meta_info" not in reply:
        raise msgspec.ValidationError("the reply has no meta_info")
    meta = _decode_raw_object(reply["meta_info"])
    kept = {key: value for key, value in meta.items() if key not in LOGPROB_KEYS}
    reply["meta_info"] = msgspec.Raw(_encode(kept))
    return _encode(reply)


async def read_whole(reply: Reply, max_bytes: int) -> bytes | None:
    """Return the body of `reply`, or None where it is over `max_bytes`: it is then relayed as it arrives."""
    if isinstance(reply.body, bytes):
        return reply.body
    stream = reply.body
    rest = aiter(stream)
    chunks: list[bytes] = []
    size_bytes = 0
    is_relayed = False
    try:
        async for chunk in rest:
            chunks.append(chunk)
            size_bytes += len(chunk)
            if size_bytes > max_bytes:
                is_relayed = True
                reply.body = _Resumed(chunks, rest, stream)
                return None
    finally:
        if not is_relayed:
            await stream.aclose()
    reply.body = b"".join(chunks)
    return reply.body


class _Resumed:
    """A body of which `chunks` were read already, and the rest was not."""

    def __init__(self, chunks: list[bytes], rest: AsyncIterator[bytes], stream: ByteStream) -> None:
        self._chunks = chunks
        self._rest = rest
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            yield chunk
        async for chunk in self._rest:
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


def _tokens_and_logprobs(reply: GenerateReply) -> "tuple[Tokens, Logprobs | None]":
    triples = reply.meta_info.output_token_logprobs
    if triples is None:
        if reply.output_ids is None:
            raise Unrecordable("neither output_ids nor output_token_logprobs")
        return pack(array("i"), reply.output_ids), None
    ids = [each[1] for each in triples]
    if reply.output_ids is not None and reply.output_ids != ids:
        raise Unrecordable("output_ids and output_token_logprobs have different token ids")
    return pack(array("i"), ids), pack_logprobs([each[0] for each in triples])


def _weight_versions(meta: MetaInfo, size: int) -> tuple[WeightSpan, ...]:
    """Return spans that cover the generation's tokens, or nothing where the versions are not known."""
    spans = tuple(span for span in meta.weight_versions or () if span.end > span.start)
    if spans:
        joined = [0, *(span.end for span in spans)]
        if [span.start for span in spans] != joined[:-1] or joined[-1] != size:
            raise Unrecordable("weight_versions do not cover the sampled tokens")
        return spans
    if meta.weight_version is None or size == 0:
        return ()
    return (WeightSpan(version=meta.weight_version, start=0, end=size),)


def _trimmed_stop(
    finish: FinishReason | None, tokens: Tokens, text: str, prompt: Prompt, tokenizer: Tokenizer | None
) -> tuple[str, int, bool]:
    """Return the stop that is missing from the text, how many tokens it is, and whether it may cut one."""
    if finish is None or finish.type != "stop" or finish.matched is None:
        return "", 0, False
    if isinstance(finish.matched, str):
        return (finish.matched, 0, True) if prompt.trims_stop else ("", 0, False)
    matched = (finish.matched,) if isinstance(finish.matched, int) else tuple(finish.matched)
    if not matched or tuple(tokens[-len(matched) :]) != matched:
        return "", 0, False
    spelled = tokenizer.spell(matched) if tokenizer is not None else ""
    if not prompt.trims_stop and (not prompt.skips_special_tokens or (spelled and text.endswith(spelled))):
        return "", 0, False
    return spelled, len(matched), False
