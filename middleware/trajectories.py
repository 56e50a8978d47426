"""What was recorded, given back: by its text, by its token ids, by its request id, by its session."""

from array import array
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Annotated, TypeAlias

import msgspec

from ..errors import BadRequest, NotFound, TokenMismatch
from ..sglang import WeightSpan
from .outline import Outline, OutlineLimits, outline_of
from .prompts import MAX_TOKEN_ID
from .reports import NO_LOGPROB, Page, leaves_of, page_of, spans_of
from .reuse import match_text, text_after, text_before
from .segments import Generation, Piece, Tokens, path, tokens_of
from .tokenizer import LocalTokenizer, Tokenizer, TokenizerFailed
from .tree import Prefix, TokenTree

if TYPE_CHECKING:
    from fastapi import APIRouter

TokenId: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKEN_ID)]


class RetrieveRequest(msgspec.Struct, kw_only=True):
    """Body of `POST /retrieve_from_text`. `rid` makes it exact; `text` may then be left out."""

    text: str | None = None
    return_logp: bool = False
    rid: str | None = None
    session_id: str | None = None


class RetrieveIdsRequest(msgspec.Struct, kw_only=True):
    """Body of `POST /retrieve_from_ids`. `rid` names one of several trajectories with the same tokens."""

    input_ids: Annotated[list[TokenId], msgspec.Meta(min_length=1)]
    return_logp: bool = False
    rid: str | None = None
    session_id: str | None = None


class Trajectory(msgspec.Struct, kw_only=True):
    """Tokens with their origin; `tokens`, `loss_mask` and `rollout_logp` are of one length.

    `loss_mask` is 1 for sampled tokens and 0 for context, and says which log-probabilities are real: context
    has 0.0, as slime's clients expect, and a sampled token without one has null. `weight_versions` are spans
    of `tokens`. `response` is the text from the first sampled token on, null where it is not known. The
    first `matched_chars` characters and `matched_tokens` tokens are recorded; the rest was tokenised now, or
    came with the request.
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
    """Answers what was recorded, and forgets what its owner is done with."""

    def __init__(
        self,
        tree: TokenTree,
        tokenizer: Callable[[], Awaitable[Tokenizer | None]],
        stats: Callable[[], Mapping[str, float]],
    ) -> None:
        self.tree = tree
        self.stats = stats
        self._tokenizer = tokenizer

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

    async def retrieve_ids(self, request: RetrieveIdsRequest) -> Trajectory:
        """Return the given tokens, with what is recorded of the longest beginning of them.

        What follows that beginning is context. With a request id the tokens must be those of its trajectory;
        a stop token that the engine trimmed may be left out, and is then added.

        Raises: NotFound for an unknown request id, TokenMismatch where the tokens are not its trajectory's.
        """
        ids = array("i", request.input_ids)
        if request.rid is not None:
            return self._by_rid_and_ids(request.rid, ids, request)
        prefix = self.tree.match_ids(ids, request.session_id)
        try:
            before, text = await self._text_of(prefix, request.input_ids)
            pieces, rest = path(prefix.segment, len(prefix.tokens)), request.input_ids[len(prefix.tokens) :]
            return _trajectory(pieces, rest, text, len(before or ""), with_logprobs=request.return_logp)
        finally:
            self.tree.release(prefix)

    def find(self, rid: str) -> Generation:
        """Return the generation that a request made.

        Raises: NotFound where none is recorded.
        """
        generation = self.tree.get(rid)
        if generation is None:
            raise NotFound(f"No trajectory of request id {rid!r} is recorded, or it has been evicted")
        return generation

    def page(self, session_id: str, *, after: int, limit: int, leaves: bool) -> Page:
        """Return a page of a session's generations; with `leaves`, of those that none of them goes on from.

        Raises: NotFound where the session is not known.
        """
        generations = self.tree.session(session_id)
        if not generations:
            raise NotFound(f"No trajectory of session {session_id!r} is recorded, or they have been evicted")
        return page_of(leaves_of(generations) if leaves else generations, after=after, limit=limit)

    def forget(self, rid: str) -> None:
        """Forget the trajectory of a request id.

        Raises: NotFound where none is recorded.
        """
        if not self.tree.forget(rid):
            raise NotFound(f"No trajectory of request id {rid!r} is recorded, or it has been evicted")

    def forget_session(self, session_id: str) -> int:
        """Forget a session's trajectories; return how many there were.

        Raises: NotFound where there was none.
        """
        forgotten = self.tree.forget_session(session_id)
        if not forgotten:
            raise NotFound(f"No trajectory of session {session_id!r} is recorded, or they have been evicted")
        return forgotten

    async def outline(self, limits: OutlineLimits) -> Outline:
        """Return the tree's top, its most recent parts first. Previews need a tokenizer in this process."""
        tokenizer = await self._tokenizer() if limits.preview_tokens else None
        spell = tokenizer.spell if isinstance(tokenizer, LocalTokenizer) else None
        return outline_of(self.tree, limits, spell)

    def routes(self) -> "APIRouter":
        """Return the router with the endpoints."""
        from .trajectory_routes import trajectory_routes  # noqa: PLC0415  only a server needs it

        return trajectory_routes(self)

    def _by_rid(self, rid: str, request: RetrieveRequest) -> Trajectory:
        generation = self.find(rid)
        texts = self.tree.spelled_text(generation)
        if request.text is not None and texts is not None and request.text not in texts:
            raise TokenMismatch(f"`text` is not the text of the trajectory of request id {rid!r}")
        return _whole(generation, texts[0] if texts is not None else None, with_logprobs=request.return_logp)

    def _by_rid_and_ids(self, rid: str, ids: Tokens, request: RetrieveIdsRequest) -> Trajectory:
        generation = self.find(rid)
        tokens = tokens_of(path(generation, generation.end))
        if ids not in (tokens, tokens[: len(tokens) - generation.trimmed_tokens]):
            raise TokenMismatch(f"`input_ids` are not the tokens of the trajectory of request id {rid!r}")
        texts = self.tree.spelled_text(generation)
        return _whole(generation, texts[0] if texts is not None else None, with_logprobs=request.return_logp)

    async def _by_text(self, text: str, request: RetrieveRequest) -> Trajectory:
        tokenizer = await self._tokenizer()
        prompt_prefix = tokenizer.prompt_prefix if tokenizer is not None else ""
        for each in {text: None, text.removeprefix(prompt_prefix): None}:
            generation = self.tree.find_text(each, request.session_id)
            if generation is not None:
                found = _whole(generation, each, with_logprobs=request.return_logp)
                found.matched_chars = len(text)
                return found
        decode = tokenizer.decode if tokenizer is not None else None
        prefix = await match_text(self.tree, text, request.session_id, decode)
        try:
            rest = text[prefix.matched_chars :]
            ids = await _tokenise(tokenizer, rest, is_prompt=not prefix.tokens) if rest else []
            pieces = path(prefix.segment, len(prefix.tokens))
            return _trajectory(pieces, ids, text, prefix.matched_chars, with_logprobs=request.return_logp)
        finally:
            self.tree.release(prefix)

    async def _text_of(self, prefix: Prefix, ids: list[int]) -> tuple[str | None, str | None]:
        """Return the text of a prefix matched by ids, and that of all of them, each None where not known."""
        tokenizer = await self._tokenizer()
        if tokenizer is None or tokenizer.decode is None:
            return None, None
        before = await text_before(self.tree, prefix, tokenizer.decode)
        if before is None or len(prefix.tokens) == len(ids):
            return before, before
        added = await text_after(prefix, ids, tokenizer)
        return before, before + added if added is not None else None


async def _tokenise(tokenizer: Tokenizer | None, text: str, *, is_prompt: bool) -> list[int]:
    if tokenizer is None:
        raise BadRequest("The text is not recorded and there is no tokenizer: set radix_tree.tokenizer_path")
    try:
        return await (tokenizer.encode_prompt(text) if is_prompt else tokenizer.encode_continuation(text))
    except TokenizerFailed as error:
        raise BadRequest(f"The text is not recorded and cannot be tokenised: {error}") from error


def _whole(generation: Generation, text: str | None, *, with_logprobs: bool) -> Trajectory:
    pieces = path(generation, generation.end)
    return _trajectory(pieces, [], text, len(text or ""), with_logprobs=with_logprobs)


def _trajectory(
    pieces: list[Piece], rest: list[int], text: str | None, matched_chars: int, *, with_logprobs: bool
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
        logprobs += segment.logprobs[:used] if segment.logprobs is not None else [NO_LOGPROB] * used
        versions += spans_of(segment, used)
    return Trajectory(
        tokens=tokens + rest,
        response=response,
        loss_mask=mask + [0] * len(rest),
        token_length=len(tokens) + len(rest),
        loss_mask_length=len(mask) + len(rest),
        rollout_logp=logprobs + [0.0] * len(rest) if with_logprobs else msgspec.UNSET,
        weight_versions=versions,
        matched_chars=matched_chars,
        matched_tokens=len(tokens),
    )
