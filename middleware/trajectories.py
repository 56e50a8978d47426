"""HTTP endpoints of the radix tree: a trajectory by its text or its request id, and the tree's counters."""

from array import array
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

import msgspec

from ..errors import BadRequest, NotFound, TokenMismatch
from ..sglang import WeightSpan
from .reuse import match_text
from .segments import Generation, Logprobs, Piece, path, tokens_of
from .tokenizer import Tokenizer, TokenizerFailed
from .tree import TokenTree

if TYPE_CHECKING:
    from fastapi import APIRouter


class RetrieveRequest(msgspec.Struct, kw_only=True):
    """Body of `POST /retrieve_from_text`. `rid` makes it exact; `text` may then be left out."""

    text: str | None = None
    return_logp: bool = False
    rid: str | None = None
    session_id: str | None = None


class Trajectory(msgspec.Struct, kw_only=True):
    """Tokens with their origin; `tokens`, `loss_mask` and `rollout_logp` are of one length.

    `loss_mask` is 1 for sampled tokens and 0 for context, and says which log-probabilities are real: context
    has 0.0, as slime's clients expect, and a sampled token without one has null. `weight_versions` are spans
    of `tokens`. `response` is the text from the first sampled token on, null where it is not known. The
    first `matched_chars` characters and `matched_tokens` tokens are recorded; the rest was tokenised now.
    """

    tokens: list[int]
    response: str | None
    loss_mask: list[int]
    token_length: int
    loss_mask_length: int
    rollout_logp: list[float] | msgspec.UnsetType
    weight_versions: list[WeightSpan]
    matched_chars: int
    matched_tokens: int


class Trajectories:
    """Answers what was recorded."""

    def __init__(
        self,
        tree: TokenTree,
        tokenizer: Callable[[], Awaitable[Tokenizer | None]],
        stats: Callable[[], Mapping[str, float]],
    ) -> None:
        self._tree = tree
        self._tokenizer = tokenizer
        self._stats = stats

    async def retrieve(self, request: RetrieveRequest) -> Trajectory:
        """Return the trajectory of a request id, or of the recorded path with which a text begins.

        A text that ends where a reply ended, as the client saw it, gives the whole reply, with the stop
        token that the engine trimmed. Of any other text the longest recorded beginning is taken, and the
        rest is tokenised, as context.

        Raises: BadRequest for a text that cannot be tokenised, NotFound for an unknown request id,
        TokenMismatch where the text is not that of the request id.
        """
        if request.rid is not None:
            return self._by_rid(request.rid, request)
        if not request.text:
            raise BadRequest("Give `text` (not empty) or `rid`")
        try:
            return await self._by_text(request.text, request)
        except UnicodeEncodeError:
            raise BadRequest("`text` holds half of a surrogate pair, which is no text") from None

    def _by_rid(self, rid: str, request: RetrieveRequest) -> Trajectory:
        generation = self._tree.get(rid)
        if generation is None:
            raise NotFound(f"No trajectory of request id {rid!r} is recorded, or it has been evicted")
        texts = self._tree.spelled_text(generation)
        if request.text is not None and texts is not None and request.text not in texts:
            raise TokenMismatch(f"`text` is not the text of the trajectory of request id {rid!r}")
        return _whole(generation, texts[0] if texts is not None else None, request)

    async def _by_text(self, text: str, request: RetrieveRequest) -> Trajectory:
        tokenizer = await self._tokenizer()
        prompt_prefix = tokenizer.prompt_prefix if tokenizer is not None else ""
        for each in {text: None, text.removeprefix(prompt_prefix): None}:
            generation = self._tree.find_text(each, request.session_id)
            if generation is not None:
                found = _whole(generation, each, request)
                found.matched_chars = len(text)
                return found
        decode = tokenizer.decode if tokenizer is not None else None
        prefix = await match_text(self._tree, text, request.session_id, decode)
        try:
            rest = text[prefix.matched_chars :]
            ids = await _tokenise(tokenizer, rest, is_prompt=not prefix.tokens) if rest else []
            pieces = path(prefix.segment, len(prefix.tokens))
        finally:
            self._tree.release(prefix)
        return _trajectory(pieces, ids, text, prefix.matched_chars, request)

    def routes(self) -> "APIRouter":
        """Return the router with the endpoints."""
        from fastapi import APIRouter, Request, Response  # noqa: PLC0415  only a server needs it

        router = APIRouter(tags=["radix tree"])
        decode = msgspec.json.Decoder(RetrieveRequest).decode
        encode = msgspec.json.Encoder().encode

        @router.post("/retrieve_from_text", summary="Tokens, mask and log-probabilities of a recorded text")
        async def retrieve_from_text(request: Request) -> Response:
            try:
                body = decode(await request.body())
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise BadRequest(f"The request body does not fit: {error}") from None
            return Response(encode(await self.retrieve(body)), media_type="application/json")

        @router.get("/radix_tree/stats", summary="Counters of the radix tree")
        async def stats() -> Response:
            return Response(encode(dict(self._stats())), media_type="application/json")

        return router


async def _tokenise(tokenizer: Tokenizer | None, text: str, *, is_prompt: bool) -> list[int]:
    if tokenizer is None:
        raise BadRequest("The text is not recorded and there is no tokenizer: set radix_tree.tokenizer_path")
    try:
        return await (tokenizer.encode_prompt(text) if is_prompt else tokenizer.encode_continuation(text))
    except TokenizerFailed as error:
        raise BadRequest(f"The text is not recorded and cannot be tokenised: {error}") from error


def _whole(generation: Generation, text: str | None, request: RetrieveRequest) -> Trajectory:
    pieces = path(generation, generation.end)
    return _trajectory(pieces, [], text, len(text) if text is not None else 0, request)


def _trajectory(
    pieces: list[Piece], rest: list[int], text: str | None, matched_chars: int, request: RetrieveRequest
) -> Trajectory:
    tokens = tokens_of(pieces).tolist()
    mask: list[int] = []
    logprobs: list[float] = []
    versions: list[WeightSpan] = []
    response: str | None = "" if text is not None else None
    for segment, used in pieces:
        if not isinstance(segment, Generation):
            mask += [0] * used
            logprobs += [0.0] * used
            continue
        if not any(mask) and text is not None:
            response = text.encode()[segment.text_start :].decode()
        mask += [1] * used
        logprobs += _logprobs(segment, used)
        versions += (
            WeightSpan(
                version=span.version,
                start=segment.start + span.start,
                end=segment.start + min(span.end, used),
            )
            for span in segment.weight_versions
            if span.start < used
        )
    return Trajectory(
        tokens=tokens + rest,
        response=response,
        loss_mask=mask + [0] * len(rest),
        token_length=len(tokens) + len(rest),
        loss_mask_length=len(mask) + len(rest),
        rollout_logp=logprobs + [0.0] * len(rest) if request.return_logp else msgspec.UNSET,
        weight_versions=versions,
        matched_chars=matched_chars,
        matched_tokens=len(tokens),
    )


def _logprobs(generation: Generation, used: int) -> Logprobs:
    """Return the log-probabilities of the first tokens; NaN (JSON null) where the worker gave none."""
    if generation.logprobs is None:
        return array("d", [float("nan")]) * used
    return generation.logprobs[:used]
