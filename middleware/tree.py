"""The token tree: what was read and sampled, found again by text, by token ids, or by request id.

Invariant: the tokens on the path to a segment, joined, are exactly what a worker read and sampled, each with
the log-probability and weight version it had then. Nothing is merged, guessed or re-tokenised inside a
generation.

Theory of operation: segments (see `segments`) hang together by parent links; two prefix indices lead to
them, one over text and one over token ids, both holding the end of every prompt and of every generation.
A running call holds the segments it builds on (`match_*`, `hold`, `open_context`; `release` lets go), a child
holds its parent, and what nothing holds can go: a context at once, a generation when the budget needs its
room, least recently used first. No method does I/O or awaits; all walks are loops.
"""

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from itertools import islice

import msgspec

from ..sglang import WeightSpan
from .cut import Cut, TextMatch
from .matching import MAX_SAME_KEY, TEXT_AXIS, TOKEN_AXIS, choose, shared_context
from .radix import RadixIndex
from .segments import Context, Generation, Logprobs, Segment, Tokens, path, tokens_of

MAX_SESSION_CANDIDATES = 64
"""How many of a session's generations are compared with a prompt, latest first."""

SEGMENT_BYTES = 1500
"""What a segment costs beside its tokens and text: the objects of itself, its index nodes and its names."""

TOKEN_BYTES = 8
"""A token's id in its segment and in the index."""

LOGPROB_BYTES = 8


class Prefix(msgspec.Struct, frozen=True, kw_only=True):
    """The recorded beginning of a prompt; its segment is held until `TokenTree.release`.

    `tokens` are the first `len(tokens)` tokens on the path to `segment`. They spell the prompt's first
    `text_bytes` bytes and `matched_chars` characters (0 for a match by token ids). `exact` is the context of
    the same prompt, where it is recorded as it is.
    """

    segment: Segment | None
    tokens: Tokens
    text_bytes: int
    matched_chars: int
    exact: Context | None = None


class Sampled(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker answered, as the tree records it. See `Generation` for the fields."""

    rid: str
    session_id: str | None
    tokens: Tokens
    logprobs: "Logprobs | None"
    weight_versions: tuple[WeightSpan, ...]
    finish_type: str | None
    text: str | None
    """The text that the client saw, or None where the worker gave none."""
    trimmed_stop: str = ""
    """What the engine trimmed from the text, where that is known."""
    trimmed_tokens: int = 0
    cuts_token: bool = False
    skips_special_tokens: bool = True


class TokenTree:
    """Records prompts and generations within a budget. It has no tokenizer: `reuse` does what needs one."""

    def __init__(self, *, max_cached_tokens: int, max_cached_bytes: int) -> None:
        self._max_cached_tokens = max_cached_tokens
        self._max_cached_bytes = max_cached_bytes
        self._texts: RadixIndex[Segment] = RadixIndex()
        self._ids: RadixIndex[Segment] = RadixIndex()
        self._by_rid: dict[str, Generation] = {}
        self._sessions: dict[str, dict[Generation, None]] = {}
        self._leaves: OrderedDict[Generation, None] = OrderedDict()
        self._ordinal = 0
        self._segment_bytes = 0
        self.trajectories = 0
        self.cached_tokens = 0
        self.evicted_tokens = 0

    @property
    def cached_bytes(self) -> int:
        """Estimate of the memory that the recorded segments take."""
        return self._segment_bytes + self._texts.label_bytes

    def match_text(self, text: str, session_id: str | None) -> TextMatch:
        """Return the recorded path that `text` goes on from, and hold it; `hold` keeps what is cut of it.

        Raises: UnicodeEncodeError where the text holds a lone surrogate.
        """
        key = text.encode()
        match = self._texts.match(key)
        reach, exact = choose(match, len(key), TEXT_AXIS, session_id, self._recent(session_id))
        if exact is not None and reach is None and not exact.is_canonical:
            exact = None
        found = TextMatch(key, reach, exact)
        if found.segment is not None:
            self._take(found.segment)
        return found

    def hold(self, match: TextMatch, cut: Cut) -> Prefix:
        """Return the tokens of `cut`, which was made of `match`, and hold them."""
        matched_chars = len(match.key[: cut.text_bytes].decode())
        return self._hold(cut.segment, cut.end, cut.text_bytes, matched_chars, match.exact)

    def match_ids(self, ids: Sequence[int], session_id: str | None) -> Prefix:
        """Return the recorded tokens with which `ids` begin, up to the last sampled one, and hold them."""
        match = self._ids.match(array("i", ids).tobytes())
        reach, exact = choose(match, len(ids), TOKEN_AXIS, session_id, self._recent(session_id))
        if exact is not None:
            return self._hold(exact, exact.end, exact.text_end, 0, exact)
        if reach is None:
            return self._hold(None, 0, 0, 0)
        return self._hold(reach.generation, reach.matched, 0, 0)

    def open_context(
        self,
        prefix: Prefix,
        rest: Sequence[int],
        text: str | None,
        *,
        is_canonical: bool,
        text_before_bytes: int | None = None,
    ) -> Context:
        """Return the context of the prompt that `prefix` and the tokens `rest` make, and hold it.

        `text` is the whole prompt's, or None where it is not known; `text_before_bytes` is how much of it
        the prefix spells, where the prefix was matched by token ids.
        """
        if prefix.exact is not None:
            prefix.exact.holders += 1
            return prefix.exact
        parent, start, text_start = prefix.segment, len(prefix.tokens), prefix.text_bytes
        if text_before_bytes is not None:
            text_start = text_before_bytes
        if parent is not None and not parent.has_text:
            text = None
        key = text.encode() if text is not None else None
        ids_key = (prefix.tokens + array("i", rest)).tobytes()
        match = self._ids.match(ids_key)
        shared = shared_context(match, parent, start, text_start if key is not None else None)
        if shared is not None:
            parent, start, rest = shared.segment, shared.end, rest[shared.end - start :]
        context = Context(
            parent=parent,
            start=start,
            tokens=array("i", rest),
            text_start=text_start,
            text_end=len(key) if key is not None else text_start,
            ordinal=self._next_ordinal(),
            is_canonical=is_canonical and prefix.segment is None,
            holders=1,
        )
        known = match.last_node
        context.ids_node = self._ids.insert(ids_key[known.end :], context, after=known)
        if key is not None:
            context.text_node = self._texts.insert(key, context)
        self._add(context)
        return context

    def record(self, context: Context, sampled: Sampled) -> Generation:
        """Record what was sampled after the prompt of `context`, which the caller holds."""
        assert context.holders > 0
        text, visible_end, text_end = sampled.text, context.text_end, context.text_end
        visible = spelled = b""
        if text is not None:
            visible, spelled = text.encode(), sampled.trimmed_stop.encode()
            visible_end += len(visible)
            text_end = visible_end + len(spelled)
        generation = Generation(
            parent=context,
            start=context.end,
            tokens=sampled.tokens,
            text_start=context.text_end,
            text_end=text_end,
            ordinal=self._next_ordinal(),
            rid=sampled.rid,
            session_id=sampled.session_id,
            logprobs=sampled.logprobs,
            weight_versions=sampled.weight_versions,
            finish_type=sampled.finish_type,
            visible_end=visible_end,
            trimmed_tokens=sampled.trimmed_tokens,
            cuts_token=sampled.cuts_token,
            skips_special_tokens=sampled.skips_special_tokens,
        )
        generation.ids_node = self._ids.insert(sampled.tokens.tobytes(), generation, after=context.ids_node)
        if text is not None and context.text_node is not None:
            generation.visible_node = self._texts.insert(visible, generation, after=context.text_node)
            generation.text_node = self._texts.insert(spelled, generation, after=generation.visible_node)
        self._by_rid[sampled.rid] = generation
        if sampled.session_id is not None:
            self._sessions.setdefault(sampled.session_id, {})[generation] = None
        self.trajectories += 1
        self._leaves[generation] = None
        self._add(generation)
        self._evict()
        return generation

    def get(self, rid: str) -> Generation | None:
        """Return the generation that the request `rid` made, the latest if there are several."""
        generation = self._by_rid.get(rid)
        if generation is not None:
            self._touch(generation)
        return generation

    def find_text(self, text: str, session_id: str | None) -> Generation | None:
        """Return the generation at whose end, visible or with its stop spelled out, `text` ends.

        Among several the session's latest, else the latest.

        Raises: UnicodeEncodeError where the text holds a lone surrogate.
        """
        key = text.encode()
        match = self._texts.match(key)
        if match.length < len(key) or match.node.end != len(key) or match.node.values is None:
            return None
        own = (each for each in self._recent(session_id) if each in match.node.values)
        latest = (
            each for each in islice(reversed(match.node.values), MAX_SAME_KEY) if isinstance(each, Generation)
        )
        generation = next(own, None) or next(latest, None)
        if generation is not None:
            self._touch(generation)
        return generation

    def spelled_text(self, generation: Generation) -> tuple[str, str] | None:
        """Return the trajectory's text to its visible end, and with its stop spelled out, if known."""
        if generation.text_node is None:
            return None
        key = self._texts.key_of(generation.text_node)
        return key[: generation.visible_end].decode(), key.decode()

    def recorded_length(self, ids: Tokens) -> int:
        """Return how many of `ids`, from the first one on, were read or sampled in this order before."""
        return self._ids.match(ids.tobytes()).length // TOKEN_AXIS.unit_bytes

    def release(self, held: TextMatch | Prefix | Context) -> None:
        """Let go of what `match_*`, `hold` or `open_context` returned."""
        segment = held if isinstance(held, Context) else held.segment
        if segment is not None:
            self._let_go(segment, is_recent=True)
            self._evict()

    def _recent(self, session_id: str | None) -> list[Generation]:
        if session_id is None:
            return []
        return list(islice(reversed(self._sessions.get(session_id, {})), MAX_SESSION_CANDIDATES))

    def _hold(
        self,
        segment: Segment | None,
        end: int,
        text_bytes: int,
        matched_chars: int,
        exact: Context | None = None,
    ) -> Prefix:
        if segment is not None:
            self._take(segment)
        return Prefix(
            segment=segment,
            tokens=tokens_of(path(segment, end)),
            text_bytes=text_bytes,
            matched_chars=matched_chars,
            exact=exact,
        )

    def _next_ordinal(self) -> int:
        self._ordinal += 1
        return self._ordinal

    def _add(self, segment: Segment) -> None:
        if segment.parent is not None:
            self._take(segment.parent)
        self.cached_tokens += len(segment.tokens)
        self._segment_bytes += _cost_bytes(segment)

    def _take(self, segment: Segment) -> None:
        segment.holders += 1
        if isinstance(segment, Generation):
            self._leaves.pop(segment, None)

    def _touch(self, generation: Generation) -> None:
        if generation in self._leaves:
            self._leaves.move_to_end(generation)

    def _let_go(self, segment: Segment, *, is_recent: bool) -> None:
        """Drop a holder; contexts that nobody holds go, generations wait for the budget."""
        each: Segment | None = segment
        while each is not None:
            each.holders -= 1
            if each.holders > 0:
                return
            if isinstance(each, Generation):
                self._leaves[each] = None
                self._leaves.move_to_end(each, last=is_recent)
                return
            self._forget(each)
            each = each.parent

    def _evict(self) -> None:
        while self._leaves and (
            self.cached_tokens > self._max_cached_tokens or self.cached_bytes > self._max_cached_bytes
        ):
            generation, _ = self._leaves.popitem(last=False)
            before = self.cached_tokens
            self._forget(generation)
            if generation.parent is not None:
                self._let_go(generation.parent, is_recent=False)
            self.evicted_tokens += before - self.cached_tokens

    def _forget(self, segment: Segment) -> None:
        """Take a segment out of the indices. Its parent's holder is for the caller to drop."""
        self.cached_tokens -= len(segment.tokens)
        self._segment_bytes -= _cost_bytes(segment)
        assert segment.ids_node is not None
        self._ids.remove(segment.ids_node, segment)
        text_node, segment.ids_node, segment.text_node = segment.text_node, None, None
        if text_node is not None:
            self._texts.remove(text_node, segment)
        if not isinstance(segment, Generation):
            return
        if segment.visible_node is not None and segment.visible_node is not text_node:
            self._texts.remove(segment.visible_node, segment)
        segment.visible_node = None
        self.trajectories -= 1
        if self._by_rid.get(segment.rid) is segment:
            del self._by_rid[segment.rid]
        if segment.session_id is not None:
            session = self._sessions[segment.session_id]
            del session[segment]
            if not session:
                del self._sessions[segment.session_id]


def _cost_bytes(segment: Segment) -> int:
    with_logprobs = isinstance(segment, Generation) and segment.logprobs is not None
    token_bytes = TOKEN_BYTES + LOGPROB_BYTES if with_logprobs else TOKEN_BYTES
    return SEGMENT_BYTES + token_bytes * len(segment.tokens)
