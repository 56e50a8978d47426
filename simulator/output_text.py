"""The text of a growing output: where each token ends, stop strings, and what is trimmed."""

import re
from collections.abc import Sequence
from itertools import accumulate

from .tokenizer import whole_characters

PATTERN_WINDOW = 4096
"""Bytes of text, from its end, in which a stop pattern is looked for after each token."""


class OutputText:
    """Invariant: `offsets[i]` is the length, in bytes, of the text of the first i tokens."""

    def __init__(
        self,
        pieces: Sequence[bytes],
        *,
        stop: Sequence[str],
        patterns: Sequence[re.Pattern[str]],
        trim: bool,
    ) -> None:
        self._pieces = pieces
        self._stops = [(text, text.encode()) for text in stop]
        self._patterns = patterns
        self._trim = trim
        self._data = bytearray()
        self._offsets = [0]
        self._end: int | None = None

    def extend(self, ids: Sequence[int]) -> tuple[int, str | None]:
        """Add tokens up to the one that completes a stop string; return how many, and what was matched."""
        pieces = [self._pieces[token_id] for token_id in ids]
        if not self._stops and not self._patterns:
            self._offsets.extend(accumulate(map(len, pieces), initial=self._offsets.pop()))
            self._data += b"".join(pieces)
            return len(ids), None
        for count, piece in enumerate(pieces, start=1):
            self._data += piece
            self._offsets.append(len(self._data))
            matched = self._match()
            if matched is not None:
                return count, matched
        return len(ids), None

    def trim_last_token(self) -> None:
        """Leave the last token, a stop token, out of the text, unless trimming is off."""
        if self._trim:
            self._end = self._offsets[-2]

    def between(self, start: int, stop: int, *, final: bool) -> str:
        """Return the text of the tokens `start` to `stop` (exclusive).

        `final` trims, and shows a character that stayed incomplete as U+FFFD; before that it is held back.
        """
        if final:
            whole = self._data[: self._end].decode("utf-8", errors="replace")
        else:
            whole = whole_characters(bytes(self._data[: self._offsets[stop]]))
        if start == 0:
            return whole
        return whole[len(whole_characters(bytes(self._data[: self._offsets[start]]))) :]

    def _match(self) -> str | None:
        before = self._offsets[-2]
        for text, needle in self._stops:
            at = self._data.find(needle, max(0, before - len(needle)))
            if at >= 0:
                self._end = at if self._trim else None
                return text
        for pattern in self._patterns:
            window = self._data[-PATTERN_WINDOW:].decode("utf-8", errors="ignore")
            match = pattern.search(window)
            if match:
                self._end = len(self._data) - len(window[match.start() :].encode()) if self._trim else None
                return match.group()
        return None
