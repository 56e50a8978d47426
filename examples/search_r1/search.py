"""The tool: looks passages up in `corpus.jsonl`."""

import functools
import json
from pathlib import Path
from typing import Annotated

import msgspec

from examples.search_r1.bm25 import Index, Passage

CORPUS = Path(__file__).parent / "corpus.jsonl"


@functools.cache
def index() -> Index:
    """Return the index of the corpus, made when it is first asked."""
    lines = CORPUS.read_text(encoding="utf-8").splitlines()
    return Index([Passage(**json.loads(line)) for line in lines])


def search(
    query: Annotated[str, msgspec.Meta(description="words to look for", max_length=1000)],
    k: Annotated[int, msgspec.Meta(description="passages to return", ge=1, le=10)] = 3,
) -> str:
    """Search an encyclopedia for short passages."""
    found = index().search(query, k)
    lines = [f"[{number}] {passage.title}: {passage.text}" for number, passage in enumerate(found, start=1)]
    return "\n".join(lines) or "Nothing was found."
