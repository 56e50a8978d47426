"""The tree's top: what is shown of it, and what is not."""

import asyncio
from pathlib import Path

from espalier.middleware.outline import Outline, OutlineLimits, OutlineNode, outline_of
from espalier.middleware.tree import TokenTree

from .driver import Setup, ids_of, says
from .test_forgetting import say, tree_of
from .test_tree import decode, encode


def shown(tree: TokenTree, *, nodes: int = 100, depth: int = 8, preview_tokens: int = 0) -> Outline:
    limits = OutlineLimits(nodes=nodes, depth=depth, preview_tokens=preview_tokens)
    return outline_of(tree, limits, decode_few if preview_tokens else None)


def decode_few(ids: tuple[int, ...]) -> str:
    return decode(ids)


def walk(nodes: list[OutlineNode]) -> list[OutlineNode]:
    return [each for node in nodes for each in (node, *walk(node.children))]


def test_prompt_with_two_siblings_is_a_node_with_two_below() -> None:
    tree = tree_of()
    say(tree, "the quick", "hello", "a", versions=("1",))
    say(tree, "the quick", "there", "b", versions=("1", "2"))
    say(tree, "the quickhello", " world", "c")
    outline = shown(tree)
    (prompt,) = outline.nodes
    assert (prompt.depth, prompt.tokens, prompt.prompts, prompt.generations) == (
        1,
        len(encode("the quick")),
        1,
        0,
    )
    assert prompt.hits == 1
    first, second = sorted(prompt.children, key=lambda node: node.weight_versions)
    assert (first.weight_versions, second.weight_versions) == (["1"], ["1", "2"])
    assert (first.hits, second.hits) == (1, 0)
    assert first.end == len(encode("the quick") + encode("hello"))
    assert (outline.trajectories, outline.shown, outline.hidden) == (3, 4, 0)


def test_node_inside_a_token_is_not_shown() -> None:
    tree = tree_of()
    prompts = [[7, 0x0102], [7, 0x0302], [7, 0x0103]]  # two begin with the same byte after the 7
    for ids in prompts:
        tree.open_context(tree.match_ids(ids, None), ids[:], None, is_canonical=False)
    (shared,) = shown(tree).nodes
    assert (shared.end, shared.prompts) == (1, 0)
    assert [(node.end, node.tokens, node.prompts) for node in shared.children] == [(2, 1, 1)] * 3


def test_latest_are_shown_where_there_is_no_room_for_all_and_the_rest_is_counted() -> None:
    tree = tree_of()
    for number in range(30):
        say(tree, f"{number} bottles", "hello", str(number))
    outline = shown(tree, nodes=7)
    assert (outline.shown, len(walk(outline.nodes))) == (7, 7)
    previews = [node.preview for node in walk(shown(tree, nodes=7, preview_tokens=32).nodes)]
    assert any("29" in str(each) or "9 bottles" in str(each) for each in previews)
    assert outline.hidden + sum(node.hidden for node in walk(outline.nodes)) > 0


def test_depth_is_bounded_and_what_lies_deeper_is_counted() -> None:
    tree = tree_of()
    text = "hello"
    for turn in range(40):
        say(tree, text, "a", str(turn))
        text += "ab"
    nodes = walk(shown(tree, depth=3).nodes)
    assert max(node.depth for node in nodes) == 3
    assert [node.hidden for node in nodes if node.depth == 3] == [1]


def test_no_text_is_shown_unless_asked_for_and_then_only_its_beginning() -> None:
    tree = tree_of()
    say(tree, "the quick brown fox jumps", "hello", "a")
    assert "quick" not in repr(shown(tree))
    (node,) = shown(tree, preview_tokens=2).nodes
    assert node.preview == decode(encode("the quick brown fox jumps")[:2])


def test_empty_tree_has_an_empty_outline() -> None:
    assert shown(tree_of()).nodes == []


def test_preview_comes_from_the_tokenizer_at_hand(tmp_path: Path) -> None:
    setup = Setup(tmp_path, says("hello"))
    setup.send(text="the quick")
    limits = OutlineLimits(nodes=1, depth=1, preview_tokens=32)
    outline = asyncio.run(setup.middleware.trajectories.outline(limits))
    assert [node.preview for node in outline.nodes] == ["the quick"]
    assert outline.nodes[0].tokens == len(ids_of("the quick"))
