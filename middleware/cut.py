"""Where a text leaves the recorded path that it goes on from: how many of its tokens are reused.

Pure functions of segments, which never change once they are made, and of tokens that were read before: while
a segment is held, a long generation can be cut in a thread, whatever becomes of the tree meanwhile.
"""

from array import array
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from .matching import TEXT_AXIS, Prompt, Reach, furthest_reach
from .segments import Context, Segment, Tokens


class Decode(Protocol):
    """Token ids to text, with special tokens left out or spelled out. May be called in any thread."""

    def __call__(self, ids: Sequence[int], *, skips_special_tokens: bool) -> str:
        """Return the text of `ids`."""
        ...


class TextMatch(NamedTuple):
    """The recorded path that the prompt `key` (UTF-8) goes on from; held until `TokenTree.release`.

    `exact` is the context of the same prompt, where it is recorded as it is and its tokens can be used.
    `tokens` are those of the generation that is reached, if `cut` has to decode it; else there are none.
    """

    key: bytes
    prompt: Prompt
    reach: Reach | None
    exact: Context | None
    tokens: Tokens

    @classmethod
    def of(cls, key: bytes, prompt: Prompt, reach: Reach | None, exact: Context | None) -> "TextMatch":
        """Return the match, with what of the tree `cut` needs."""
        is_decoded = exact is None and reach is not None and _is_cut_by_decoding(reach)
        tokens = reach.generation.tokens if reach is not None and is_decoded else array("i")
        return cls(key, prompt, reach, exact, tokens)

    @property
    def segment(self) -> Segment | None:
        """The segment that is held."""
        if self.exact is not None:
            return self.exact
        return self.reach.generation if self.reach is not None else None

    def cut(self, decode: Decode | None) -> "Cut":
        """Return the most tokens of the path that the prompt reuses.

        Without `decode`, a generation that the prompt leaves in the middle is not reused.
        """
        if self.exact is not None:
            return Cut(self.exact, self.exact.end, len(self.key))
        reach = self.reach
        while reach is not None:
            end, text_bytes = _token_end(reach, self.key, self.tokens, decode)
            generation = reach.generation
            if end > generation.start:
                return Cut(generation, end, text_bytes)
            before = generation.text_start
            reach = furthest_reach(generation.parent, before, TEXT_AXIS, self.prompt, generation)
        return Cut(None, 0, 0)


class Cut(NamedTuple):
    """The first `end` tokens on the path to `segment`, which spell a prompt's first `text_bytes` bytes."""

    segment: Segment | None
    end: int
    text_bytes: int


def _is_cut_by_decoding(reach: Reach) -> bool:
    """Say whether its generation must be decoded to know how many of its tokens lie in the text."""
    return not reach.is_whole or (reach.child is None and reach.generation.cuts_token)


def _token_end(reach: Reach, key: bytes, tokens: Tokens, decode: Decode | None) -> tuple[int, int]:
    """Return how many tokens of the path a text reuses, and how many bytes they spell."""
    generation, matched, child, _ = reach
    if not _is_cut_by_decoding(reach):
        if child is not None:
            return child.start, matched
        if matched == generation.text_end:
            return generation.start + generation.spelled_tokens, matched
        return generation.end - generation.trimmed_tokens, matched
    if decode is None:
        return generation.start, generation.text_start
    text = key[generation.text_start : matched].decode(errors="ignore")
    count, kept = whole_tokens(tokens, text, decode, skips_special_tokens=generation.skips_special_tokens)
    return generation.start + count, generation.text_start + len(kept.encode())


_REPLACEMENT = "\ufffd"
"""What a decoder writes for bytes that are no character, or not yet one."""

_MAX_PENDING_BYTES = 4
"""Bytes of one unfinished UTF-8 character, and one to spare."""

_MAX_STEPS_BACK = 16
"""How many tokens are given up, one by one, until one ends with a character. A character of four bytes takes
three; longer rows of tokens that all end inside a character are not worth their decodings."""


def whole_tokens(
    tokens: Sequence[int], text: str, decode: Decode, *, skips_special_tokens: bool
) -> tuple[int, str]:
    """Return how many of `tokens`, at the most, have a text that is a prefix of `text`, and their text.

    Tokens at the end that show nothing (special tokens left out of the text, a trimmed stop) are not kept.
    Fewer than the most are returned where a decoder takes back what it showed: where a row of byte tokens
    turns out to be no text. The number of decodings grows with the logarithm of the number of tokens.
    """

    def show(count: int) -> str:
        return decode(tokens[:count], skips_special_tokens=skips_special_tokens)

    count = bisect_left(range(len(tokens)), x=True, key=lambda before: not _may_begin(text, show(before + 1)))
    for _ in range(_MAX_STEPS_BACK):
        kept = show(count)
        fewest = _fewest(show, count, kept)
        if text.startswith(kept):
            return fewest, kept
        count = fewest - 1
    return 0, ""


def _fewest(show: Callable[[int], str], count: int, kept: str) -> int:
    """Return the least number of tokens that show `kept`, as `count` do."""
    if count == 0 or show(count - 1) != kept:
        return count
    return bisect_left(range(count), x=True, key=lambda fewer: show(fewer) == kept)


def _may_begin(text: str, decoded: str) -> bool:
    """Say whether `decoded` is a prefix of `text`, but for a character that is still unfinished at its end.

    Once this is false, it stays so for more tokens: the condition can be bisected. A row of bytes that is no
    text yet may show as a replacement character each, so lengths are compared in bytes.
    """
    shown = decoded.rstrip(_REPLACEMENT)
    pending_bytes = len(decoded) - len(shown)
    fits = len(shown.encode()) + pending_bytes <= len(text.encode()) + _MAX_PENDING_BYTES
    return fits and text.startswith(shown)
