"""The token tree: what was read and sampled, found again by text, by token ids, or by request id.

Invariant: the tokens on the path to a segment, joined, are exactly what a worker read and sampled, each with
the log-probability and weight version it had then. Nothing is merged, guessed or re-tokenised inside a
generation.

Theory of operation: segments (see `segments`) hang together by parent links, and are found by two prefix
indices (see `radix`). `match_*`, `hold` and `open_context` hold the segments that a running call builds on,
`release` lets go of them. What stays, and what goes when, is for `store` to say.

No method does I/O or awaits; all walks are loops.
"""

import sys
from array import array
from collections.abc import Sequence
from itertools import islice

import msgspec

from ..sglang import WeightSpan
from .cut import Cut, TextMatch
from .matching import MAX_SAME_KEY, TEXT_AXIS, TOKEN_AXIS, Prompt, choose, shared_context
from .segments import Context, Generation, Logprobs, Segment, Tokens, compact_versions, path, tokens_of
from .store import SegmentStore

MAX_SESSION_CANDIDATES = 64
"""How many of a session's generations are compared with a prompt, latest first."""


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


class TokenTree(SegmentStore):
    """Records prompts and generations within a budget. It has no tokenizer: `reuse` does what needs one."""

    def match_text(self, text: str, session_id: str | None) -> TextMatch:
        """Return the recorded path that `text` goes on from, and hold it; `hold` keeps what is cut of it.

        Raises: UnicodeEncodeError where the text holds a lone surrogate.
        """
        key = text.encode()
        match = self._texts.match(key)
        prompt = Prompt(len(key), session_id)
        reach, exact = choose(match, prompt, TEXT_AXIS, self._recent(session_id))
        if exact is not None and reach is None and not exact.is_canonical:
            exact = None
        found = TextMatch.of(key, prompt, reach, exact)
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
        prompt = Prompt(len(ids), session_id)
        reach, exact = choose(match, prompt, TOKEN_AXIS, self._recent(session_id))
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
            size=len(rest),
            text_start=text_start,
            text_end=len(key) if key is not None else text_start,
            ordinal=self._next_ordinal(),
            is_canonical=is_canonical and prefix.segment is None,
            holders=1,
        )
        known = match.last_node
        context.ids_node = self._ids.insert(ids_key[known.end :], context, context.ordinal, after=known)
        if key is not None:
            context.text_node = self._texts.insert(key, context, context.ordinal)
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
            text_end = visible_end + len(spelled) if spelled else visible_end
        generation = Generation(
            parent=context,
            start=context.end,
            size=len(sampled.tokens),
            text_start=context.text_end,
            text_end=text_end,
            ordinal=self._next_ordinal(),
            rid=sampled.rid,
            session_id=sampled.session_id,
            logprobs=sampled.logprobs,
            versions=compact_versions(sampled.weight_versions),
            finish_type=sys.intern(sampled.finish_type) if sampled.finish_type is not None else None,
            visible_end=visible_end,
            trimmed_tokens=sampled.trimmed_tokens,
            cuts_token=sampled.cuts_token,
            skips_special_tokens=sampled.skips_special_tokens,
        )
        ids_key, stamp = sampled.tokens.tobytes(), generation.ordinal
        generation.ids_node = self._ids.insert(ids_key, generation, stamp, after=context.ids_node)
        if text is not None and context.text_node is not None:
            generation.visible_node = self._texts.insert(visible, generation, stamp, after=context.text_node)
            generation.text_node = self._texts.insert(
                spelled, generation, stamp, after=generation.visible_node
            )
        self._keep(generation)
        return generation

    def find_text(self, text: str, session_id: str | None) -> Generation | None:
        """Return the generation at whose end, visible or with its stop spelled out, `text` ends.

        Among several the session's latest, else the latest.

        Raises: UnicodeEncodeError where the text holds a lone surrogate.
        """
        key = text.encode()
        match = self._texts.match(key)
        if match.length < len(key) or match.node.end != len(key):
            return None
        own = (each for each in self._recent(session_id) if match.node.holds(each))
        latest = (
            each
            for each in islice(match.node.values(), MAX_SAME_KEY)
            if isinstance(each, Generation) and not each.is_forgotten
        )
        generation = next(own, None) or next(latest, None)
        if generation is not None:
            self._touch(generation)
        return generation

    def spelled_text(self, segment: Segment) -> tuple[str, str] | None:
        """Return the text up to the segment's visible end, and with its stop spelled out, if known."""
        if segment.text_node is None:
            return None
        key = segment.text_node.key()
        visible_end = segment.visible_end if isinstance(segment, Generation) else segment.text_end
        return key[:visible_end].decode(), key.decode()

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
        self._names.use_session(session_id, self._clock())
        return list(islice(reversed(self._names.session(session_id)), MAX_SESSION_CANDIDATES))

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
            segment.hits += 1
        return Prefix(
            segment=segment,
            tokens=tokens_of(path(segment, end)),
            text_bytes=text_bytes,
            matched_chars=matched_chars,
            exact=exact,
        )
