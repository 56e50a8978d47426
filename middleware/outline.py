"""The tree's top, for people: what was recorded last, as a nested outline of bounded size.

The outline is of the index over token ids. A node stands where recorded tokens part, or where a prompt or a
generation ends; its `tokens` are those from the node above it. The index parts bytes, and four of them are a
token: where it parts inside a token, the outline shows the parts below the node before. Only what is shown
is walked, and the children of that: a tree of a million prompts takes no longer than one of hundreds.
"""

import heapq
from array import array
from collections.abc import Callable
from itertools import count, islice

import msgspec

from .matching import MAX_SAME_KEY, TOKEN_AXIS
from .radix import Node
from .segments import Generation, Segment
from .tree import TokenTree

Spell = Callable[[tuple[int, ...]], str]
"""Returns the text of a few ids, "" where it is not known."""


class OutlineLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How much is shown: so many nodes, so deep, and so many tokens of each as text."""

    nodes: int
    depth: int
    preview_tokens: int


class OutlineNode(msgspec.Struct, kw_only=True):
    """A node: `tokens` from the node above it, up to `end` from the root.

    `prompts` and `generations` end here; of more than 64 the latest 64 are counted, and give `hits` (how
    many prompts went on from them) and `weight_versions`. `hidden` branches below it are not shown.
    """

    depth: int
    tokens: int
    end: int
    prompts: int
    generations: int
    hits: int
    weight_versions: list[str]
    preview: str | msgspec.UnsetType = msgspec.UNSET
    hidden: int = 0
    children: "list[OutlineNode]"


class Outline(msgspec.Struct, kw_only=True):
    """The tree's size, and the nodes that were added to last."""

    trajectories: int
    sessions: int
    cached_tokens: int
    cached_bytes: int
    shown: int
    hidden: int
    nodes: list[OutlineNode]


def outline_of(tree: TokenTree, limits: OutlineLimits, spell: Spell | None) -> Outline:
    """Return the part of the tree that was added to last; the work is bounded by `limits`.

    `spell` makes the previews; without it there are none.
    """
    outline = Outline(
        trajectories=tree.trajectories,
        sessions=tree.sessions,
        cached_tokens=tree.cached_tokens,
        cached_bytes=tree.cached_bytes,
        shown=0,
        hidden=0,
        nodes=[],
    )
    tie = count()
    # The latest first; nothing below a node is later than the node, so parents come before their children.
    waiting: list[tuple[int, int, Node[Segment], Outline | OutlineNode]] = []

    def wait(below: Node[Segment], shown: Outline | OutlineNode) -> None:
        children = below.children()
        if isinstance(shown, OutlineNode) and shown.depth == limits.depth:
            shown.hidden += len(children)
            return
        for child in children:
            heapq.heappush(waiting, (-child.stamp, next(tie), child, shown))

    wait(tree.root, outline)
    while waiting and outline.shown < limits.nodes:
        _, _, node, above = heapq.heappop(waiting)
        if node.end % TOKEN_AXIS.unit_bytes:
            wait(node, above)
            continue
        shown = _described(node, above)
        if spell is not None:
            shown.preview = _preview(node, shown, limits.preview_tokens, spell)
        (above.children if isinstance(above, OutlineNode) else above.nodes).append(shown)
        outline.shown += 1
        wait(node, shown)
    for _, _, _, above in waiting:
        above.hidden += 1
    return outline


def _described(node: Node[Segment], above: Outline | OutlineNode) -> OutlineNode:
    latest = list(islice(node.values(), MAX_SAME_KEY))
    generations = [each for each in latest if isinstance(each, Generation)]
    versions = {span.version: None for each in reversed(generations) for span in each.weight_versions}
    depth, start = (above.depth, above.end) if isinstance(above, OutlineNode) else (0, 0)
    end = node.end // TOKEN_AXIS.unit_bytes
    return OutlineNode(
        depth=depth + 1,
        tokens=end - start,
        end=end,
        prompts=len(latest) - len(generations),
        generations=len(generations),
        hits=sum(each.hits for each in latest),
        weight_versions=list(versions),
        children=[],
    )


def _preview(node: Node[Segment], shown: OutlineNode, tokens: int, spell: Spell) -> str:
    """Return the text of the first tokens after the node above."""
    key = node.key((shown.end - shown.tokens) * TOKEN_AXIS.unit_bytes)
    size_bytes = min(tokens, shown.tokens) * TOKEN_AXIS.unit_bytes
    return spell(tuple(array("i", key[:size_bytes])))
