"""A worker's answer to `/generate`: what was sampled, and the answer as the client asked for it.

An answer tells of one generation: a reply is one, so is each entry of the list that answers a batch, and each
event of a stream, which may tell a part only.
"""

import struct
from array import array
from collections.abc import AsyncIterator

import msgspec

from ..calls import ByteStream, Reply
from ..errors import EspalierError
from ..sglang import FinishType, GenerateReply, MetaInfo, WeightSpan, decode_reply
from .logprobs import cut_added, cut_logprobs, pack, pack_logprobs
from .prompts import Prompt
from .segments import Logprobs, Tokens
from .tokenizer import Tokenizer
from .tree import Sampled

LOGPROB_KEYS = frozenset(
    {
        "input_token_logprobs",
        "output_token_logprobs",
        "output_token_logprobs_length",
        "input_token_ids_logprobs",
        "output_token_ids_logprobs",
    }
)
"""What `return_logprob` adds to `meta_info`, but for what begins as follows."""

TOP_LOGPROB_KEYS = ("input_top_logprobs", "output_top_logprobs")

META_INFO = b'"meta_info":{'
"""Where SGLang begins to write it: behind the text and the token ids."""

NOWHERE = -1
"""The place of what was not found."""

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding raises where a worker does not write the JSON that is expected."""

_decode_raw_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_raw_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


class _Head(msgspec.Struct, kw_only=True):
    """An answer whose tokens are known already."""

    text: str | None = None
    meta_info: MetaInfo


_decode_head = msgspec.json.Decoder(_Head).decode


class Unrecordable(EspalierError):
    """An answer that contradicts itself or its prompt: it goes to the client, and not into the tree."""


class Refused(Unrecordable):
    """The worker's way of saying no where it must say 200: nothing was sampled."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer tells of a generation.

    `content` is the answer's bytes, without the log-probabilities' entries where those were cut out.
    """

    tokens: Tokens
    logprobs: "Logprobs | None"
    text: str | None
    meta: MetaInfo
    content: bytes

    @property
    def is_finished(self) -> bool:
        """Whether the worker has told how the generation ended."""
        return self.meta.finish_reason is not None


def read_answer(content: bytes) -> Answer:
    """Return what `content` tells.

    Raises: Unrecordable where that is not one generation.
    """
    try:
        cut = cut_logprobs(content)
        if cut is not None:
            head = _decode_head(cut.rest)
            return Answer(
                tokens=cut.tokens,
                logprobs=cut.logprobs,
                text=head.text,
                meta=head.meta_info,
                content=cut.rest,
            )
        reply = decode_reply(content)
        tokens, logprobs = _tokens_and_logprobs(reply)
        return Answer(
            tokens=tokens, logprobs=logprobs, text=reply.text, meta=reply.meta_info, content=content
        )
    except UNREADABLE as error:
        raise Unrecordable(f"not one generation: {error}") from None
    except struct.error as error:
        raise Unrecordable(f"token ids or log-probabilities out of range: {error}") from None


def read_sampled(
    answer: Answer, prompt: Prompt, tokenizer: Tokenizer | None, *, prompt_tokens: int, is_streamed: bool
) -> Sampled:
    """Return what `answer`, which tells all of a generation, says was sampled.

    `prompt` was sent as `prompt_tokens` ids. An answer that is not finished is that of a stream which broke
    off: its text may end before its tokens do, and its `finish_type` is None.

    Raises: Unrecordable where it says two things, or answers a prompt of another length: a worker may cut off
    what is too long for it. One that read nothing names no length. Refused where nothing was sampled.
    """
    meta, tokens = answer.meta, answer.tokens
    finish = meta.finish_reason
    if finish is not None and finish.type == FinishType.ABORT and finish.status_code is not None:
        raise Refused(f"the worker refused it: {finish.status_code}")
    if not meta.id:
        raise Unrecordable("meta_info has no id")
    if meta.prompt_tokens not in (None, prompt_tokens):
        raise Unrecordable(f"the worker read {meta.prompt_tokens} of {prompt_tokens} prompt tokens")
    if finish is not None and meta.completion_tokens not in (None, len(tokens)):
        raise Unrecordable("completion_tokens does not count the sampled tokens")
    stop, trimmed_tokens, cuts_token = _trimmed_stop(answer, prompt, tokenizer, is_streamed=is_streamed)
    return Sampled(
        rid=meta.id,
        session_id=prompt.session_id,
        tokens=tokens,
        logprobs=answer.logprobs,
        weight_versions=_weight_versions(meta, len(tokens)),
        finish_type=finish.type if finish is not None else None,
        text=answer.text,
        trimmed_stop=stop,
        trimmed_tokens=trimmed_tokens,
        cuts_token=cuts_token or finish is None,
        skips_special_tokens=prompt.skips_special_tokens,
    )


def without_logprobs(content: bytes, meta_at: int) -> bytes:
    """Return an answer as the worker would have given it without `return_logprob`; what stays, stays as is.

    `meta_at` is where `META_INFO` stands in it; with NOWHERE it is decoded, and so checked to be JSON.

    Raises: one of UNREADABLE where it is no JSON object with a `meta_info`.
    """
    cut = cut_added(content, meta_at) if meta_at >= 0 else None
    if cut is not None:
        return cut
    reply = _decode_raw_object(content)
    if "meta_info" not in reply:
        raise msgspec.ValidationError("the reply has no meta_info")
    meta = _decode_raw_object(reply["meta_info"])
    kept = {
        key: value
        for key, value in meta.items()
        if key not in LOGPROB_KEYS and not key.startswith(TOP_LOGPROB_KEYS)
    }
    reply["meta_info"] = msgspec.Raw(_encode(kept))
    return _encode(reply)


def has_meta_info(content: bytes) -> bool:
    """Say whether `content` is a JSON object with a `meta_info`, however it is written."""
    try:
        return "meta_info" in _decode_raw_object(content)
    except UNREADABLE:
        return False


def split_list(content: bytes) -> list[bytes] | None:
    """Return the entries of the list that answers a batch, each as it is, or None where it is no list."""
    try:
        return [bytes(each) for each in _decode_raw_list(content)]
    except UNREADABLE:
        return None


def join_list(entries: list[bytes]) -> bytes:
    """Return the list of these entries, as a worker writes it."""
    return b"[%b]" % b",".join(entries)


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
    answer: Answer, prompt: Prompt, tokenizer: Tokenizer | None, *, is_streamed: bool
) -> tuple[str, int, bool]:
    """Return the stop that is missing from the text, how many tokens it is, and whether it may cut one.

    The beginning of a stop string that spans tokens is told by a stream before it is known to be one.
    """
    finish, tokens, text = answer.meta.finish_reason, answer.tokens, answer.text or ""
    if finish is None or finish.type != "stop" or finish.matched is None:
        return "", 0, False
    if isinstance(finish.matched, str):
        # The text ends at or after a stop string, be it trimmed or not; the last token may go on behind it.
        is_trimmed = prompt.trims_stop and finish.matched in prompt.stop_strings
        told_chars = _overlap(text, finish.matched) if is_streamed else 0
        return finish.matched[told_chars:] if is_trimmed else "", 0, True
    matched = (finish.matched,) if isinstance(finish.matched, int) else tuple(finish.matched)
    if not matched or tuple(tokens[-len(matched) :]) != matched:
        return "", 0, False
    spelled = tokenizer.spell(matched) if tokenizer is not None else ""
    if not prompt.trims_stop and (not prompt.skips_special_tokens or (spelled and text.endswith(spelled))):
        return "", 0, False
    return spelled, len(matched), False


def _overlap(text: str, word: str) -> int:
    """Return the length of the longest end of `text` with which `word` begins, without being all of it."""
    return next((length for length in range(len(word) - 1, 0, -1) if text.endswith(word[:length])), 0)
