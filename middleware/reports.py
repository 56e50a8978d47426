"""Trajectories as they are told over HTTP: segment by segment, singly or a session's in pages.

A segment here is a run of tokens of one origin, as in the tree; contexts that the tree stores in parts are
told as one. Positions count the trajectory's tokens from its first one.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from itertools import groupby

import msgspec

from ..sglang import WeightSpan
from .buffers import Buffer
from .logprobs import extend_logprobs
from .segments import Generation, Logprobs, Piece, chain, path, tokens_of
from .tree import TokenTree

MAX_PAGE_TOKENS = 200_000
"""A page of a session ends when it has so many tokens: its JSON takes some 30 ms, which others wait."""

NO_LOGPROB = float("nan")
"""What stands in an array where a token has no log-probability; JSON has null."""


class Origin(StrEnum):
    """Where a segment's tokens come from."""

    CONTEXT = "context"
    GENERATION = "generation"


class SegmentReport(msgspec.Struct, kw_only=True):
    """One segment of a trajectory: its tokens `start` to `end` (exclusive).

    `parent` is the request id of the generation that it follows, null at the beginning. `loss_mask` is that
    of all its tokens: 1 where they were sampled. `logprobs` are in nats, null in context and where the worker
    gave none. `text` is null where it is not known. `rid`, `session_id` and `finish_type` are a generation's;
    where the trajectory leaves it before its end, `is_whole` is false.
    """

    origin: Origin
    parent: str | None
    start: int
    end: int
    loss_mask: int
    tokens: list[int] | msgspec.UnsetType = msgspec.UNSET
    logprobs: list[float] | msgspec.UnsetType | None = msgspec.UNSET
    weight_versions: list[WeightSpan]
    text: str | None
    rid: str | None = None
    session_id: str | None = None
    finish_type: str | None = None
    is_whole: bool = True


class TrajectoryReport(msgspec.Struct, kw_only=True):
    """A trajectory: everything that was read and sampled up to the end of the generation `rid`.

    `parent` is the request id of the generation before, null in a first turn. `text` is the whole text as
    the client saw it, without a stop that the engine trimmed at the end; null where it is not known.
    """

    rid: str
    session_id: str | None
    parent: str | None
    finish_type: str | None
    token_length: int
    text: str | None
    segments: list[SegmentReport]


class SessionReport(msgspec.Struct, kw_only=True):
    """A page of a session's trajectories, oldest first; `next` is what asks for the page after it.

    `total` counts the trajectories of all pages.
    """

    session_id: str
    total: int
    trajectories: list[TrajectoryReport]
    next: int | None


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """The generations of a page, how many all pages have, and behind which ordinal number the next begins."""

    generations: list[Generation]
    total: int
    next: int | None


def report_trajectory(tree: TokenTree, generation: Generation, *, with_arrays: bool) -> TrajectoryReport:
    """Return the trajectory that ends with `generation`, with or without tokens and log-probabilities."""
    texts = tree.spelled_text(generation)
    before = generation.before
    return TrajectoryReport(
        rid=generation.rid,
        session_id=generation.session_id,
        parent=before.rid if before is not None else None,
        finish_type=generation.finish_type,
        token_length=generation.end,
        text=texts[0] if texts is not None else None,
        segments=list(
            _segments(generation, texts[0] if texts is not None else None, with_arrays=with_arrays)
        ),
    )


def arrays_of(generation: Generation) -> dict[str, Buffer]:
    """Return tokens, loss mask and log-probabilities (nats, NaN where there is none) of its trajectory."""
    pieces = path(generation, generation.end)
    mask = array("B")
    logprobs = array("d")
    for segment, used in pieces:
        mask += array("B", [isinstance(segment, Generation)]) * used
        told = _logprobs(segment, used) if isinstance(segment, Generation) else _none(used)
        logprobs = extend_logprobs(logprobs, told)
    return {"tokens": tokens_of(pieces), "loss_mask": mask, "logprobs": logprobs}


def page_of(generations: Iterable[Generation], *, after: int, limit: int) -> Page:
    """Return the `limit` first of a session's generations whose ordinal number is greater than `after`.

    Fewer where they have more than `MAX_PAGE_TOKENS` tokens; one is always returned if there is one.
    """
    every = list(generations)
    rest = [each for each in every if each.ordinal > after]
    chosen: list[Generation] = []
    tokens = 0
    for each in rest[:limit]:
        tokens += each.end
        if chosen and tokens > MAX_PAGE_TOKENS:
            break
        chosen.append(each)
    more = len(rest) > len(chosen)
    return Page(generations=chosen, total=len(every), next=chosen[-1].ordinal if chosen and more else None)


def leaves_of(generations: Sequence[Generation]) -> list[Generation]:
    """Return those from which none of the others goes on, in the same order."""
    inner: set[Generation] = set()
    for generation in generations:
        for each in chain(generation.parent):
            if each in inner:
                break
            if isinstance(each, Generation):
                inner.add(each)
    return [each for each in generations if each not in inner]


def _segments(generation: Generation, text: str | None, *, with_arrays: bool) -> Iterator[SegmentReport]:
    visible = text.encode() if text is not None else None
    runs = [list(run) for _, run in groupby(path(generation, generation.end), key=_run_of)]
    parent: str | None = None
    for run, following in zip(runs, [*runs[1:], None], strict=True):
        text_end = following[0].segment.text_start if following is not None else generation.visible_end
        text_start = run[0].segment.text_start
        shown = visible[text_start:text_end].decode() if visible is not None else None
        yield _segment(run, parent, shown, with_arrays=with_arrays)
        last = run[-1].segment
        if isinstance(last, Generation):
            parent = last.rid


def _run_of(piece: Piece) -> object:
    """Return the same for pieces that are told as one: contexts in a row."""
    return piece.segment if isinstance(piece.segment, Generation) else Origin.CONTEXT


def _segment(run: list[Piece], parent: str | None, text: str | None, *, with_arrays: bool) -> SegmentReport:
    first, (last, used) = run[0].segment, run[-1]
    report = SegmentReport(
        origin=Origin.CONTEXT,
        parent=parent,
        start=first.start,
        end=last.start + used,
        loss_mask=0,
        weight_versions=[],
        text=text,
    )
    if with_arrays:
        report.tokens = tokens_of(run).tolist()
        report.logprobs = None
    if isinstance(last, Generation):
        report.origin = Origin.GENERATION
        report.loss_mask = 1
        report.weight_versions = spans_of(last, used)
        report.rid = last.rid
        report.session_id = last.session_id
        report.finish_type = last.finish_type
        report.is_whole = used == last.size
        if with_arrays and last.logprobs is not None:
            report.logprobs = last.logprobs[:used].tolist()
    return report


def spans_of(generation: Generation, used: int) -> list[WeightSpan]:
    """Return the weight versions of its first `used` tokens, as spans of its trajectory's tokens."""
    return [
        WeightSpan(
            version=span.version,
            start=generation.start + span.start,
            end=generation.start + min(span.end, used),
        )
        for span in generation.weight_versions
        if span.start < used
    ]


def _logprobs(generation: Generation, used: int) -> Logprobs:
    return generation.logprobs[:used] if generation.logprobs is not None else _none(used)


def _none(size: int) -> Logprobs:
    return array("d", [NO_LOGPROB]) * size
