r"""The last `\boxed{…}` of a text."""

import re
from typing import Final

_OPENING: Final = re.compile(r"\\boxed\s*\{")


def last_boxed(text: str) -> str | None:
    r"""Return what stands in the last `\boxed{…}` of `text`, braces balanced.

    None where there is none, or the last one was never closed: a response that was cut off in its answer
    has not given it.
    """
    start = None
    for match in _OPENING.finditer(text):
        start = match.end()
    return None if start is None else braced(text, start)


def braced(text: str, start: int) -> str | None:
    """Return what stands from `start`, just behind an opening brace, to the one that closes it; or None."""
    depth = 1
    position = start
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 1
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return text[start:position]
        position += 1
    return None
