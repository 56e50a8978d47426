"""The token tree: what it shares, finds and drops, one behaviour a test."""

from array import array
from collections.abc import Sequence

from espalier.middleware.segments import Context, Generation, Segment, path
from espalier.middleware.tree import Prefix, Sampled, TokenTree

from .tokenizers_made import byte_level

TOKENIZER = byte_level()


def encode(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False).ids


def decode(ids: Sequence[int], *, skips_special_tokens: bool = False) -> str:
    return TOKENIZER.decode(list(ids), skip_special_tokens=skips_special_tokens)


def matched(tree: TokenTree, text: str, session_id: str | None = None) -> Prefix:
    match = tree.match_text(text, session_id)
    prefix = tree.hold(match, match.cut(decode))
    tree.release(match)
    return prefix


def mask_of(segment: Segment | None, end: int) -> list[int]:
    mask: list[int] = []
    for piece in path(segment, end):
        mask += [int(isinstance(piece.segment, Generation))] * piece.used
    return mask


def record(tree: TokenTree, context: Context, rid: str, text: str | None) -> Generation:
    sampled = encode(text or "z")
    generation = tree.record(
        context,
        Sampled(
            rid=rid,
            session_id=None,
            tokens=array("i", sampled),
            logprobs=None,
            weight_versions=(),
            finish_type="length",
            text=text,
        ),
    )
    tree.release(context)
    return generation


def opened(tree: TokenTree, text: str, *, by_ids: bool = False) -> Context:
    """Open the prompt `text` as the middleware does; by its ids alone, its text is not known to the tree."""
    ids = array("i", encode(text))
    prefix = tree.match_ids(ids, None) if by_ids else matched(tree, text)
    rest = ids[len(prefix.tokens) :] if by_ids else encode(text[prefix.matched_chars :])
    context = tree.open_context(prefix, rest, None if by_ids else text, is_canonical=not by_ids)
    tree.release(prefix)
    return context


def test_contexts_store_what_they_share_once() -> None:
    tree = TokenTree(max_cached_tokens=10**6, max_cached_bytes=10**9)
    for rid in ("a", "b", "c"):
        record(tree, opened(tree, "x" * 40 + rid), rid, "z")
    assert tree.cached_tokens == 40 + 3 * 2


def test_context_that_shares_little_does_not_keep_a_long_one_alive() -> None:
    tree = TokenTree(max_cached_tokens=10**6, max_cached_bytes=10**9)
    record(tree, opened(tree, "x" * 20 + "y" * 500), "long", "z")
    short = record(tree, opened(tree, "x" * 20 + "b"), "short", "z")
    assert short.parent is not None
    assert short.parent.parent is None


def test_context_by_ids_whose_text_is_unknown_does_not_hide_a_reply_from_texts() -> None:
    tree = TokenTree(max_cached_tokens=10**6, max_cached_bytes=10**9)
    reply = record(tree, opened(tree, "hello"), "first", " world")
    turn = "hello world" + "x" * 40
    record(tree, opened(tree, turn, by_ids=True), "by ids", None)
    record(tree, opened(tree, turn), "by text", "z")
    prefix = matched(tree, turn + "?")
    assert prefix.segment is reply
    assert prefix.matched_chars == len("hello world")


def test_bytes_are_bounded_where_tokens_are_few() -> None:
    tree = TokenTree(max_cached_tokens=10**6, max_cached_bytes=100_000)
    for rid in range(500):
        record(tree, opened(tree, f"prompt {rid}"), str(rid), "z")
    assert tree.cached_bytes <= 100_000
    assert 10 < tree.trajectories < 500
    assert tree.get("499") is not None
    assert tree.get("0") is None


def test_least_recently_used_trajectory_goes_first() -> None:
    tree = TokenTree(max_cached_tokens=6, max_cached_bytes=10**9)
    for rid in "abc":
        record(tree, opened(tree, rid), rid, "z")
    assert tree.get("a") is not None
    record(tree, opened(tree, "?"), "d", "z")
    assert [rid for rid in "abcd" if tree.get(rid) is not None] == ["a", "c", "d"]


def test_branch_inside_a_reply_is_found_past_a_context_of_unknown_text() -> None:
    tree = TokenTree(max_cached_tokens=10**6, max_cached_bytes=10**9)
    reply = record(tree, opened(tree, "hello"), "first", "aba")
    turn = "hello" + "a" + "x" * 40
    record(tree, opened(tree, turn, by_ids=True), "by ids", None)
    record(tree, opened(tree, turn), "by text", "z")
    prefix = matched(tree, turn + "?")
    assert (prefix.segment, prefix.matched_chars) == (reply, len("helloa"))


def test_tokens_sampled_under_an_unknown_text_stay_context_for_a_text() -> None:
    tree = TokenTree(max_cached_tokens=10**6, max_cached_bytes=10**9)
    sampled = tree.record(
        held := opened(tree, "hello", by_ids=True),
        Sampled(
            rid="by ids",
            session_id=None,
            tokens=array("i", encode("x" * 40)),
            logprobs=None,
            weight_versions=(),
            finish_type="length",
            text=None,
        ),
    )
    tree.release(held)
    generation = record(tree, opened(tree, "hello" + "x" * 40), "by text", "z")
    assert mask_of(generation, generation.start) == [0] * generation.start
    assert mask_of(sampled, sampled.end) == [0] * sampled.start + [1] * 40
