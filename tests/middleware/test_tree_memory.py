"""What is evicted leaves nothing behind."""

import gc
import tracemalloc
from array import array

from espalier.middleware.tree import Sampled, TokenTree

CALLS = 300
NAME_CHARS = 20_000
"""Of each request id and session, so that one that is kept is seen."""


def record(tree: TokenTree, number: int) -> None:
    """Record a call of a session of its own."""
    ids = array("i", [number, number + 1])
    prefix = tree.match_ids(ids, None)
    context = tree.open_context(prefix, ids, f"prompt {number}", is_canonical=True)
    tree.release(prefix)
    name = f"{number}-" * (NAME_CHARS // 4)
    tree.record(
        context,
        Sampled(
            rid=name,
            session_id=name,
            tokens=array("i", [5]),
            logprobs=None,
            weight_versions=(),
            finish_type="stop",
            text=f"reply {number}",
            trimmed_stop="<|im_end|>",
            trimmed_tokens=1,
        ),
    )
    tree.release(context)


def test_ids_and_sessions_of_what_was_evicted_are_freed() -> None:
    tree = TokenTree(max_cached_tokens=30, max_cached_bytes=10**9)
    for number in range(20):
        record(tree, number)
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(20, CALLS):
            record(tree, number)
        gc.collect()
        grown_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert tree.trajectories == 10
    assert grown_bytes < 30 * NAME_CHARS
