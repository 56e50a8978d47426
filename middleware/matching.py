"""Which recorded path a prompt continues. Pure functions.

Candidates are compared by, in this order:
1. how far into the prompt the generations reach that it contains whole, trimmed stops not counted: a reply
   that the prompt goes on from is never displaced by another that happens to share a few characters more;
2. whether the generation that reaches furthest is of the caller's session;
3. whether the whole prompt is recorded;
4. how far the last generation reaches, if the prompt leaves it in the middle (an edited history);
5. which is the most recent.

Context that follows the last generation is not compared: the tokenizer makes the same ids of the same text.

A generation that shows nothing (one special token, then an abort) ends where its prompt does: a prompt that
goes on from there may as well be a new one that begins with the same text. It is the next turn where it comes
from the same session; for everybody else that generation is not there.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter
from typing import NamedTuple

from .radix import Match, Node
from .segments import TOKEN_ID_BYTES, Context, Generation, Segment, chain

MAX_SAME_KEY = 64
"""How many of the values recorded at one and the same key are looked at, latest first: a bound on the work
where thousands of siblings said the same."""


MIN_SHARED_TOKENS = 16
"""Contexts share from so many tokens on, and from half of the one that has them: who shares a few tokens of
a long context would keep all of it alive."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One way to measure a trajectory: in bytes of text, or in tokens."""

    unit_bytes: int
    """Bytes of index key for each unit of position."""
    start: Callable[[Segment], int]
    end: Callable[[Segment], int]
    visible_end: Callable[[Generation], int]
    node: Callable[[Segment], Node[Segment] | None]


TEXT_AXIS = Axis(
    unit_bytes=1,
    start=attrgetter("text_start"),
    end=attrgetter("text_end"),
    visible_end=attrgetter("visible_end"),
    node=attrgetter("text_node"),
)
TOKEN_AXIS = Axis(
    unit_bytes=TOKEN_ID_BYTES,
    start=attrgetter("start"),
    end=attrgetter("end"),
    visible_end=lambda generation: generation.end - generation.trimmed_tokens,
    node=attrgetter("ids_node"),
)


class Reach(NamedTuple):
    """A generation on a candidate's path, and how far the prompt agrees with it (positions on the axis).

    `child` is the segment with which the path goes on, if it does. `is_whole` where the prompt contains all
    of the generation that lies on the path, but for a trimmed stop, which it may contain in part: a part of
    a stop is not matched.
    """

    generation: Generation
    matched: int
    child: Segment | None
    is_whole: bool


class Prompt(NamedTuple):
    """What asks: how long it is (units of the axis), and for which session."""

    size: int
    session_id: str | None

    def touches(self, generation: Generation, until: int, axis: Axis) -> bool:
        """Say whether it has any of `generation`, with whose path it agrees up to `until`."""
        start = axis.start(generation)
        if start < until or self.session_id is None:
            return start < until
        shows_nothing = start == axis.visible_end(generation)
        is_own = generation.session_id == self.session_id and generation.size > generation.trimmed_tokens
        return shows_nothing and is_own and start == until < self.size


class Choice(NamedTuple):
    """The winning candidate: `exact` where the prompt is recorded as it is, else the furthest reach."""

    reach: Reach | None
    exact: Context | None


class _Rank(NamedTuple):
    whole_reach: int = 0
    is_own: bool = False
    is_exact: bool = False
    reach: int = 0
    ordinal: int = -1


def furthest_reach(
    segment: Segment | None, matched: int, axis: Axis, prompt: Prompt, child: Segment | None = None
) -> Reach | None:
    """Return the last generation, from `segment` upwards, that the first `matched` units of `prompt` touch.

    `child` is the segment by which the path leaves `segment`, if it does.
    """
    for each in chain(segment):
        limit = axis.end(each) if child is None else axis.start(child)
        at = min(limit, matched)
        if isinstance(each, Generation) and prompt.touches(each, at, axis):
            if child is None and axis.visible_end(each) <= at < limit:
                return Reach(each, axis.visible_end(each), child, is_whole=True)
            return Reach(each, at, child, is_whole=at == limit)
        child = each
    return None


def choose(
    match: Match[Segment],
    prompt: Prompt,
    axis: Axis,
    session: Iterable[Generation],
) -> Choice:
    """Return what to reuse for a prompt, given its match in the axis's index.

    `session` are recent generations of the caller's session.
    """
    agreed = {node: node.end // axis.unit_bytes for node in match.node.ancestry()}
    agreed[match.node] = match.length // axis.unit_bytes
    best = _Rank()
    choice = Choice(None, None)
    for candidate in _candidates(match, prompt.size * axis.unit_bytes, axis, session):
        shared = _agreement(candidate, agreed, axis)
        is_exact = isinstance(candidate, Context) and axis.end(candidate) == prompt.size == shared
        exact = candidate if isinstance(candidate, Context) and is_exact else None
        reach = furthest_reach(candidate, shared, axis, prompt)
        if reach is None and exact is None:
            continue
        rank = _rank(candidate, reach, axis, prompt, is_exact=exact is not None)
        if rank > best:
            best = rank
            choice = Choice(reach, exact)
    return choice


def _candidates(
    match: Match[Segment], size_bytes: int, axis: Axis, session: Iterable[Generation]
) -> Iterable[Segment]:
    """Yield what may win: the latest path below the match, what ends on the way to it, the session's own."""
    if match.node.latest is not None:
        yield match.node.latest
    for node in match.node.ancestry():
        if node.end > match.length or not node.has_values:
            continue
        recent = list(islice(node.values(), MAX_SAME_KEY))
        if node.end == size_bytes:
            yield from (value for value in recent if isinstance(value, Context))
        generation = next((value for value in recent if _reaches(value, node, axis)), None)
        if generation is not None:
            yield generation
            break
    yield from (generation for generation in session if axis.node(generation) is not None)


def _reaches(value: Segment, node: Node[Segment], axis: Axis) -> bool:
    """Say whether `value` is a generation with anything to reuse: an empty one would hide those above it."""
    return isinstance(value, Generation) and axis.start(value) < node.end // axis.unit_bytes


def _agreement(candidate: Segment, agreed: dict[Node[Segment], int], axis: Axis) -> int:
    """Return how many units the prompt and the candidate's path have in common."""
    node = axis.node(candidate)
    assert node is not None
    return next(agreed[above] for above in node.ancestry() if above in agreed)


def _rank(candidate: Segment, reach: Reach | None, axis: Axis, prompt: Prompt, *, is_exact: bool) -> _Rank:
    if reach is None:
        return _Rank(is_exact=is_exact, ordinal=candidate.ordinal)
    generation, matched = reach.generation, reach.matched
    is_own = prompt.session_id is not None and generation.session_id == prompt.session_id
    before: Reach | None = reach
    if not reach.is_whole:
        before = furthest_reach(generation.parent, matched, axis, prompt, generation)
    # Not counting the stop: that a sibling's is the one that the prompt spells makes it nobody's own.
    whole_reach = min(before.matched, axis.visible_end(before.generation)) if before is not None else 0
    return _Rank(whole_reach, is_own, is_exact, matched, candidate.ordinal)


class SharedContext(NamedTuple):
    """The tokens up to `end` (counted from the root) are on the path to the context `segment`."""

    segment: Context
    end: int


def shared_context(
    match: Match[Segment], below: Segment | None, start: int, text_start: int | None
) -> SharedContext | None:
    """Return the recorded context that begins with the same tokens, given a whole prompt's match by ids.

    Only contexts that follow the same token of `below` (at `start`), and the same byte of its text (at
    `text_start`; None where the text is not known), are shared.
    """
    limit = match.length // TOKEN_AXIS.unit_bytes
    found: SharedContext | None = None
    first: Segment | None = None
    for each in chain(match.node.latest):
        if each is below:
            break
        if not isinstance(each, Context):
            found = None
        elif found is None and each.start < limit:
            found = SharedContext(each, min(each.end, limit))
        limit = min(limit, each.start)
        first = each
    else:
        if below is not None:
            return None
    if found is None or first is None or first.start != start:
        return None
    shared_tokens = found.end - found.segment.start
    if found.end - start < MIN_SHARED_TOKENS or 2 * shared_tokens < found.segment.size:
        return None
    same_text = first.text_start == text_start if first.has_text else text_start is None
    return found if same_text else None
