"""What a mistyped name was probably meant to be."""

import difflib
from collections.abc import Iterable


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return ", did you mean NAME?" with the closest known name, or nothing where none is close."""
    closest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.7)
    return f", did you mean {closest[0]}?" if closest else ""
