"""A path-compressed prefix index over bytes.

Invariant: the labels from the root to a node, joined, are the node's key; no two children of a node begin
with the same byte; every node but the root holds a value, or has two children or more; `latest` of a node is
the value that was inserted last at the node or anywhere below it.

Theory of operation: an edge is split at the first differing byte, found by bisection over slices, so that
the work is done by `memcmp`. Children hang in a dict by first byte: a step down never depends on the number
of siblings, of which there can be 256. Most nodes have one child at most, and one value: these need no dict,
which would cost more than all else of a node. A split makes a new node *above* the one it cuts, and a merge
after a removal keeps the *lower* of the two, so a node returned by `insert` is good until its last value is
removed. All walks are loops: the depth of the tree is bounded by memory alone.

Text is indexed as UTF-8 and token ids as 32-bit integers; both are just bytes here. Compared with `str`
keys, one emoji does not widen a whole edge to four bytes a character.
"""

from collections.abc import Collection, Iterator
from typing import Generic, NamedTuple, TypeVar

V = TypeVar("V")


class Node(Generic[V]):
    """One node: read it, walk `parent`; only the index changes it.

    `end` is the length of its key in bytes, `stamp` that of the latest insertion at the node or below it.
    """

    __slots__ = ("_below", "_only", "_only_stamp", "_several", "end", "label", "latest", "parent", "stamp")

    def __init__(self, label: bytes, parent: "Node[V] | None", end: int) -> None:
        self.label = label
        self.parent = parent
        self.end = end
        self.latest: V | None = None
        self.stamp = 0
        self._below: Node[V] | dict[int, Node[V]] | None = None
        self._only: V | None = None
        self._only_stamp = 0
        self._several: dict[V, int] | None = None

    @property
    def has_values(self) -> bool:
        """Whether something was inserted at exactly this key."""
        return self._only is not None or self._several is not None

    def values(self) -> "Iterator[V]":
        """Yield what was inserted at exactly this key, latest first."""
        if self._several is not None:
            return reversed(self._several)
        return iter(() if self._only is None else (self._only,))

    def holds(self, value: V) -> bool:
        """Say whether `value` was inserted at exactly this key."""
        return value in self._several if self._several is not None else self._only == value

    def children(self) -> "Collection[Node[V]]":
        """Return the nodes right below."""
        if isinstance(self._below, dict):
            return self._below.values()
        return () if self._below is None else (self._below,)

    def child(self, first_byte: int) -> "Node[V] | None":
        """Return the child whose label begins with `first_byte`."""
        below = self._below
        if isinstance(below, dict):
            return below.get(first_byte)
        return below if below is not None and below.label[0] == first_byte else None

    def ancestry(self) -> "Iterator[Node[V]]":
        """Yield this node, its parent, and so on up to the root."""
        node: Node[V] | None = self
        while node is not None:
            yield node
            node = node.parent

    def key(self, start: int = 0) -> bytes:
        """Return its key, from byte `start` on."""
        labels = []
        for each in self.ancestry():
            if each.end <= start:
                break
            labels.append(each.label)
        key = b"".join(reversed(labels))
        return key[len(key) - (self.end - start) :]

    def attach(self, child: "Node[V]") -> None:
        """Hang `child` below, in the place of the one that begins with the same byte, if any."""
        below, first_byte = self._below, child.label[0]
        if isinstance(below, dict):
            below[first_byte] = child
        elif below is None or below.label[0] == first_byte:
            self._below = child
        else:
            self._below = {below.label[0]: below, first_byte: child}

    def detach(self, child: "Node[V]") -> None:
        """Take away a child."""
        if not isinstance(self._below, dict):
            self._below = None
            return
        del self._below[child.label[0]]
        if len(self._below) == 1:
            (self._below,) = self._below.values()

    def add(self, value: V, stamp: int) -> None:
        """Put `value` at this key, as the latest."""
        if self._several is not None:
            self._several.pop(value, None)
            self._several[value] = stamp
        elif self._only is None or self._only == value:
            self._only, self._only_stamp = value, stamp
        else:
            self._several = {self._only: self._only_stamp, value: stamp}
            self._only = None

    def take(self, value: V) -> None:
        """Take `value` away from this key. Raises: KeyError where it is not there."""
        if self._several is not None:
            del self._several[value]
            if len(self._several) == 1:
                ((self._only, self._only_stamp),) = self._several.items()
                self._several = None
        elif self._only is None or self._only != value:
            raise KeyError(value)
        else:
            self._only = None

    def find_latest(self) -> None:
        """Look for the latest value again, at this key and right below."""
        self.latest, self.stamp = self._only, self._only_stamp if self._only is not None else 0
        if self._several is not None:
            self.latest, self.stamp = next(reversed(self._several.items()))
        for child in self.children():
            if child.stamp > self.stamp:
                self.latest, self.stamp = child.latest, child.stamp


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
        self.label_bytes = 0
        """Bytes of all edge labels: what the keys cost after sharing."""

    def insert(self, key: bytes, value: V, stamp: int, *, after: Node[V] | None = None) -> Node[V]:
        """Add `value` at `key`, read on from the node `after` if given, and return the node it is at.

        A value that is there already becomes the latest again. `stamp` is positive and not less than any
        before; it is kept as it is, so that many indices can share one number.
        """
        node = self._descend(key, after or self._root)
        node.add(value, stamp)
        above: Node[V] | None = node
        while above is not None:
            above.latest = value
            above.stamp = stamp
            above = above.parent
        return node

    def match(self, key: bytes) -> Match[V]:
        """Return the longest prefix of `key` that is a prefix of some key in the index."""
        node = self._root
        position = 0
        size = len(key)
        while position < size:
            child = node.child(key[position])
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
        node.take(value)
        for above in node.ancestry():
            if above.latest is not value:
                break
            above.find_latest()
        self._prune(node)

    def _descend(self, key: bytes, node: Node[V]) -> Node[V]:
        position = 0
        size = len(key)
        while position < size:
            child = node.child(key[position])
            if child is None:
                self.label_bytes += size - position
                child = Node(key[position:], node, node.end + size - position)
                node.attach(child)
                return child
            if key.startswith(child.label, position):
                node = child
            else:
                node = _split(child, _shared_length(child.label, key, position))
            position += len(node.label)
        return node

    def _prune(self, node: Node[V]) -> None:
        while node.parent is not None and not node.has_values:
            parent = node.parent
            below = node.children()
            if not below:
                self.label_bytes -= len(node.label)
                parent.detach(node)
                node.parent = None
                node.latest = None
                node = parent
                continue
            if len(below) == 1:
                (child,) = below
                child.label = node.label + child.label
                child.parent = parent
                parent.attach(child)
                node.detach(child)
                node.parent = node.latest = None
            return


def _split(node: Node[V], length: int) -> Node[V]:
    """Put a new node `length` bytes into the edge above `node`, and return it."""
    parent = node.parent
    assert parent is not None
    upper = Node(node.label[:length], parent, node.end - len(node.label) + length)
    upper.latest = node.latest
    upper.stamp = node.stamp
    parent.attach(upper)
    node.label = node.label[length:]
    node.parent = upper
    upper.attach(node)
    return upper


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
