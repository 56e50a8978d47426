"""A path-compressed prefix index over bytes.

Invariant: the labels from the root to a node, joined, are the node's key; no two children of a node begin
with the same byte; every node but the root holds a value, or has two children or more; `latest` of a node is
the value that was inserted last at the node or anywhere below it.

Theory of operation: an edge is split at the first differing byte, found by bisection over slices, so that
the work is done by `memcmp`. Children hang in a dict by first byte: a step down never depends on the number
of siblings, of which there can be 256. A split makes a new node *above* the one it cuts, and a merge after a
removal keeps the *lower* of the two, so a node returned by `insert` is good until its last value is removed.
All walks are loops: the depth of the tree is bounded by memory alone.

Text is indexed as UTF-8 and token ids as 32-bit integers; both are just bytes here. Compared with `str`
keys, one emoji does not widen a whole edge to four bytes a character.
"""

from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeVar

V = TypeVar("V")


class Node(Generic[V]):
    """One node: read it, walk `parent`; only the index changes it.

    `end` is the length of its key in bytes, `values` what was inserted at exactly this key, oldest first.
    """

    __slots__ = ("children", "end", "label", "latest", "parent", "stamp", "values")

    def __init__(self, label: bytes, parent: "Node[V] | None", end: int) -> None:
        self.label = label
        self.parent = parent
        self.end = end
        self.children: dict[int, Node[V]] | None = None
        self.values: dict[V, int] | None = None
        self.latest: V | None = None
        self.stamp = 0

    def ancestry(self) -> "Iterator[Node[V]]":
        """Yield this node, its parent, and so on up to the root."""
        node: Node[V] | None = self
        while node is not None:
            yield node
            node = node.parent


class Match(NamedTuple, Generic[V]):
    """How far a key is known: its first `length` bytes lead to `node`, or into the edge that ends there."""

    length: int
    node: Node[V]

    @property
    def last_node(self) -> Node[V]:
        """The deepest node whose whole key is matched: where an insertion can start."""
        node = self.node
        if node.end > self.length:
            assert node.parent is not None
            return node.parent
        return node


class RadixIndex(Generic[V]):
    """Maps keys to values, several values a key if need be; finds the longest known prefix of a key."""

    def __init__(self) -> None:
        self._root: Node[V] = Node(b"", None, 0)
        self._stamp = 0
        self.label_bytes = 0
        """Bytes of all edge labels: what the keys cost after sharing."""

    def insert(self, key: bytes, value: V, *, after: Node[V] | None = None) -> Node[V]:
        """Add `value` at `key`, read on from the node `after` if given, and return the node it is at.

        A value that is there already becomes the latest again.
        """
        node = self._descend(key, after or self._root)
        self._stamp += 1
        if node.values is None:
            node.values = {value: self._stamp}
        else:
            node.values.pop(value, None)
            node.values[value] = self._stamp
        above: Node[V] | None = node
        while above is not None:
            above.latest = value
            above.stamp = self._stamp
            above = above.parent
        return node

    def match(self, key: bytes) -> Match[V]:
        """Return the longest prefix of `key` that is a prefix of some key in the index."""
        node = self._root
        position = 0
        size = len(key)
        while position < size and node.children is not None:
            child = node.children.get(key[position])
            if child is None:
                break
            node = child
            if key.startswith(child.label, position):
                position += len(child.label)
            else:
                position += _shared_length(child.label, key, position)
                break
        return Match(position, node)

    def remove(self, node: Node[V], value: V) -> None:
        """Remove `value` from `node`, where `insert` put it.

        Raises: KeyError where it is not there.
        """
        if node.values is None:
            raise KeyError(value)
        del node.values[value]
        if not node.values:
            node.values = None
        for above in node.ancestry():
            if above.latest is not value:
                break
            _recompute_latest(above)
        self._prune(node)

    def key_of(self, node: Node[V]) -> bytes:
        """Return the key of `node`."""
        labels = [above.label for above in node.ancestry()]
        return b"".join(reversed(labels))

    def _descend(self, key: bytes, node: Node[V]) -> Node[V]:
        position = 0
        size = len(key)
        while position < size:
            if node.children is None:
                node.children = {}
            child = node.children.get(key[position])
            if child is None:
                self.label_bytes += size - position
                child = Node(key[position:], node, node.end + size - position)
                node.children[key[position]] = child
                return child
            if key.startswith(child.label, position):
                node = child
            else:
                node = _split(child, _shared_length(child.label, key, position))
            position += len(node.label)
        return node

    def _prune(self, node: Node[V]) -> None:
        while node.parent is not None and node.values is None:
            parent = node.parent
            assert parent.children is not None
            if not node.children:
                self.label_bytes -= len(node.label)
                del parent.children[node.label[0]]
                if not parent.children:
                    parent.children = None
                node.parent = None
                node.latest = None
                node = parent
                continue
            if len(node.children) == 1:
                (child,) = node.children.values()
                child.label = node.label + child.label
                child.parent = parent
                parent.children[child.label[0]] = child
                node.parent = node.children = node.latest = None
            return


def _split(node: Node[V], length: int) -> Node[V]:
    """Put a new node `length` bytes into the edge above `node`, and return it."""
    parent = node.parent
    assert parent is not None
    assert parent.children is not None
    upper = Node(node.label[:length], parent, node.end - len(node.label) + length)
    upper.children = {node.label[length]: node}
    upper.latest = node.latest
    upper.stamp = node.stamp
    parent.children[node.label[0]] = upper
    node.label = node.label[length:]
    node.parent = upper
    return upper


def _recompute_latest(node: Node[V]) -> None:
    node.latest = None
    node.stamp = 0
    if node.values is not None:
        node.latest, node.stamp = next(reversed(node.values.items()))
    for child in (node.children or {}).values():
        if child.stamp > node.stamp:
            node.latest, node.stamp = child.latest, child.stamp


def _shared_length(label: bytes, key: bytes, position: int) -> int:
    """Return how many bytes `label` and `key[position:]` begin with in common."""
    low = 0
    high = min(len(label), len(key) - position)
    while low < high:
        middle = (low + high + 1) // 2
        if label[low:middle] == key[position + low : position + middle]:
            low = middle
        else:
            high = middle - 1
    return low
