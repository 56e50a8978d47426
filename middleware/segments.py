"""Segments: runs of tokens of one origin, linked to the segment that they follow.

Invariant: a segment's own tokens and links never change once it is made. A trajectory is the chain from a
generation up to the root; its tokens are `parent`'s path up to `start`, then the segment's own. They stand in
the index over token ids alone, as the key of `ids_node`: to be read while something holds the segment.

A child may begin anywhere inside its parent: contexts that share their first tokens share them by storing
only what differs, and an agent that goes back into a reply keeps the sampled tokens up to there. So nothing
is ever split, and a generation is never shared between siblings, even where their tokens are equal.

Positions are absolute, counted from the root: `start` and `end` in tokens, `text_*` in UTF-8 bytes.
"""

import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from ..sglang import WeightSpan
from .radix import Node

Tokens: TypeAlias = "array[int]"
"""Token ids, 4 bytes each (typecode `i`)."""

TOKEN_ID_BYTES = 4
"""What a token's id takes in the key of an index."""

Logprobs: TypeAlias = "array[float]"
"""Log-probabilities in nats, NaN where the worker gave none for a token.

4 bytes each where they are numbers of single precision (typecode `f`), else 8 (`d`).
"""


Versions: TypeAlias = "str | tuple[WeightSpan, ...]"
"""The weight versions of a generation's tokens: one name for all of them, or spans."""


@dataclass(slots=True, eq=False, kw_only=True)
class Segment:
    """What contexts and generations have in common.

    `text_start` is where the segment's first byte of text stands in its trajectory's text, `text_end` where
    its last one ends; both mean nothing unless `has_text`.
    """

    parent: "Segment | None"
    start: int
    size: int
    """How many tokens it has of its own."""
    text_start: int
    text_end: int
    ordinal: int
    """Grows with every segment made: the greater, the more recent."""
    holders: int = 0
    """Children, and running calls, that need this segment."""
    hits: int = 0
    """How many prompts went on from it."""
    ids_node: "Node[Segment] | None" = None
    text_node: "Node[Segment] | None" = None

    @property
    def end(self) -> int:
        """Where the segment's tokens end, counted from the root."""
        return self.start + self.size

    @property
    def tokens(self) -> Tokens:
        """Its own tokens, read from the index: a copy."""
        assert self.ids_node is not None
        return array("i", self.ids_node.key(self.start * TOKEN_ID_BYTES))

    @property
    def has_text(self) -> bool:
        """Whether the text of the trajectory is known up to here."""
        return self.text_node is not None


@dataclass(slots=True, eq=False, kw_only=True)
class Context(Segment):
    """Tokens that the worker read and did not sample: a prompt, or what follows a generation in one.

    Its end is the end of a prompt. `is_canonical` where the tokenizer made the ids of the whole prompt from
    its text, as the worker would have.
    """

    is_canonical: bool


@dataclass(slots=True, eq=False, kw_only=True)
class Generation(Segment):
    """Tokens that a worker sampled.

    The text that the client saw ends at `visible_end`. `text_end` lies behind it where the engine trimmed a
    stop: the stop is then spelled out between the two, as the next prompt of a chat template will do.
    """

    rid: str
    session_id: str | None
    logprobs: "Logprobs | None"
    """One for each token, or None where the worker gave none at all."""
    versions: "Versions"
    finish_type: str | None
    visible_end: int
    trimmed_tokens: int
    """Tokens at the end that `visible_end` leaves out: the stop token, where it was trimmed."""
    cuts_token: bool
    """Whether `visible_end` may lie inside a token: a stop string was trimmed."""
    skips_special_tokens: bool
    """Whether special tokens were left out of the text."""
    visible_node: "Node[Segment] | None" = None
    is_forgotten: bool = False
    """Whether nobody can ask for it any more: it stays for the segments that follow from it."""

    @property
    def weight_versions(self) -> tuple[WeightSpan, ...]:
        """Spans of the generation's own tokens, counted from its first one; empty where not known."""
        if isinstance(self.versions, str):
            return (WeightSpan(version=self.versions, start=0, end=self.size),)
        return self.versions

    @property
    def last_version(self) -> str | None:
        """The weight version of its last token: what it is as old as."""
        if isinstance(self.versions, str):
            return self.versions
        return self.versions[-1].version if self.versions else None

    @property
    def before(self) -> "Generation | None":
        """The generation that this one goes on from, if any."""
        return next((each for each in chain(self.parent) if isinstance(each, Generation)), None)

    @property
    def spelled_tokens(self) -> int:
        """How many of its tokens the text up to `text_end` spells."""
        if self.text_end > self.visible_end:
            return self.size
        return self.size - self.trimmed_tokens


def compact_versions(spans: tuple[WeightSpan, ...]) -> Versions:
    """Return spans that cover a generation, so that what thousands of them have in common is kept once."""
    if len(spans) != 1:
        return spans
    return sys.intern(spans[0].version)


class Piece(NamedTuple):
    """The first `used` tokens of `segment`'s own, as part of a path."""

    segment: Segment
    used: int


def chain(segment: Segment | None) -> Iterator[Segment]:
    """Yield `segment`, its parent, and so on up to the root."""
    while segment is not None:
        yield segment
        segment = segment.parent


def path(segment: Segment | None, end: int) -> list[Piece]:
    """Return the pieces of the path to `segment` from the root up to token `end`, in reading order."""
    pieces: list[Piece] = []
    for each in chain(segment):
        if end > each.start:
            pieces.append(Piece(each, end - each.start))
            end = each.start
    pieces.reverse()
    return pieces


def tokens_of(pieces: list[Piece]) -> Tokens:
    """Return the tokens of a path, or of a part of one, joined."""
    if not pieces:
        return array("i")
    start, (last, used) = pieces[0].segment.start, pieces[-1]
    assert last.ids_node is not None
    key = last.ids_node.key(start * TOKEN_ID_BYTES)
    return array("i", key[: (last.start + used - start) * TOKEN_ID_BYTES])
