"""Words, sentences and paragraphs of a text, found by simple rules that need no model of its language."""

import re
from typing import Final

_WORD: Final = re.compile(r"\w+")
_WHOLE_WORD: Final = re.compile(r"\w+(?:['\u2019-]\w+)*")
_SENTENCE_END: Final = re.compile(
    r"(?<![.!?\u2026\u3002\uff01\uff1f])[.!?\u2026\u3002\uff01\uff1f]+[\"'\u201d\u2019)\]*]*+(?=\s|$)"
    r"|(?<![\u3002\uff01\uff1f])[\u3002\uff01\uff1f]+"
)
"""Marks before a blank, with what closes after them; those of Chinese and Japanese need no blank."""

_ABBREVIATED: Final = re.compile(
    r"(?:^|[\s(\"'])(?:mr|mrs|ms|dr|prof|st|jr|sr|vs|approx|e\.g|i\.e|[a-z](?:\.[a-z])*)\.$", re.IGNORECASE
)
"""A point after one of these, or after single letters, ends no sentence."""

_LOOK_BACK_CHARS: Final = 24
"""Room enough for an abbreviation."""

_PARAGRAPH_END: Final = re.compile(r"\n[^\S\n]*\n")


def words(text: str) -> list[str]:
    """Return the runs of letters and digits; an apostrophe or a hyphen parts two of them."""
    return _WORD.findall(text)


def capital_words(text: str) -> list[str]:
    """Return the words without a small letter, whole with apostrophes and hyphens."""
    return [word for word in _WHOLE_WORD.findall(text) if word.isupper()]


def sentences(text: str) -> list[str]:
    """Return the sentences: a mark before a blank ends one, the point of an abbreviation does not."""
    text = text.strip()
    found: list[str] = []
    start = 0
    for end in _SENTENCE_END.finditer(text):
        before = text[max(start, end.end() - _LOOK_BACK_CHARS) : end.end()]
        if end.end() < len(text) and _ABBREVIATED.search(before):
            continue
        found.append(text[start : end.end()].strip())
        start = end.end()
    found.append(text[start:].strip())
    return [sentence for sentence in found if words(sentence)]


def paragraphs(text: str) -> list[str]:
    """Return the paragraphs, which blank lines part."""
    return [part.strip() for part in _PARAGRAPH_END.split(text) if part.strip()]


def divided(text: str, divider: str) -> list[str]:
    """Return the parts between dividers; a divider at the very beginning or end parts nothing."""
    parts = [part.strip() for part in text.split(divider)]
    if not parts[0]:
        parts = parts[1:]
    if parts and not parts[-1]:
        parts = parts[:-1]
    return parts
