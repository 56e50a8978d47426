import time

import pygtrie
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from espalier.middleware.radix import Node, RadixIndex

keys = st.text(alphabet="ab", max_size=8).map(str.encode) | st.text(max_size=4).map(
    lambda text: text.encode("utf-8", "surrogatepass")
)


class RadixMachine(RuleBasedStateMachine):
    """The index beside a plain list of (key, value) in the order of insertion."""

    inserted = Bundle("inserted")

    def __init__(self) -> None:
        super().__init__()
        self.index: RadixIndex[int] = RadixIndex()
        self.model: list[tuple[bytes, int]] = []
        self.count = 0

    @rule(target=inserted, key=keys)
    def insert(self, key: bytes) -> tuple[Node[int], bytes, int]:
        self.count += 1
        self.model.append((key, self.count))
        return self.index.insert(key, self.count, self.count), key, self.count

    @rule(target=inserted, base=inserted, rest=keys)
    def insert_after(self, base: tuple[Node[int], bytes, int], rest: bytes) -> tuple[Node[int], bytes, int]:
        node, key, value = base
        if (key, value) not in self.model:
            return base
        self.count += 1
        self.model.append((key + rest, self.count))
        return self.index.insert(rest, self.count, self.count, after=node), key + rest, self.count

    @rule(entry=consumes(inserted))
    def remove(self, entry: tuple[Node[int], bytes, int]) -> None:
        node, key, value = entry
        if (key, value) in self.model:
            self.model.remove((key, value))
            self.index.remove(node, value)

    @rule(key=keys)
    def longest_known_prefix_is_found(self, key: bytes) -> None:
        match = self.index.match(key)
        known = [
            length for length in range(len(key) + 1) if any(k.startswith(key[:length]) for k, _ in self.model)
        ]
        assert match.length == max(known, default=0)
        below = [value for k, value in self.model if k.startswith(key[: match.length])]
        assert match.node.latest == (below[-1] if below else None)
        exact = [value for k, value in self.model if k == key]
        if exact:
            assert list(match.node.values()) == exact[::-1]
            assert all(match.node.key(start) == key[start:] for start in range(len(key) + 1))

    @rule(key=keys)
    def keys_on_the_way_are_those_of_a_trie(self, key: bytes) -> None:
        trie = pygtrie.Trie(dict(self.model))  # the latest value of a key wins, as here
        match = self.index.match(key)
        on_the_way = [
            (node.key(), next(node.values()))
            for node in match.node.ancestry()
            if node.has_values and node.end <= match.length
        ]
        assert [(k, v) for k, v in reversed(on_the_way)] == [(bytes(k), v) for k, v in trie.prefixes(key)]

    @invariant()
    def every_node_is_there_for_a_value_or_a_fork(self) -> None:
        todo = list(self.index.match(b"").node.ancestry())
        while todo:
            node = todo.pop()
            children = list(node.children())
            assert node.parent is None or node.has_values or len(children) >= 2
            assert all(child.parent is node for child in children)
            todo += children

    @invariant()
    def empty_index_holds_nothing(self) -> None:
        if not self.model:
            assert self.index.label_bytes == 0
            assert self.index.match(b"a").node.latest is None


TestRadixIndex = RadixMachine.TestCase
TestRadixIndex.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_edge_is_split_at_the_first_difference() -> None:
    index: RadixIndex[str] = RadixIndex()
    index.insert(b"abcX", "x", 1)
    index.insert(b"abcY", "y", 2)
    match = index.match(b"abcZ")
    assert (match.length, match.node.label, match.node.latest) == (3, b"abc", "y")


def test_match_may_end_inside_an_edge() -> None:
    index: RadixIndex[str] = RadixIndex()
    index.insert(b"hello world", "whole", 1)
    match = index.match(b"hello there")
    assert (match.length, match.node.latest) == (6, "whole")


def test_labels_are_stored_once_for_shared_prefixes() -> None:
    index: RadixIndex[int] = RadixIndex()
    for value in range(100):
        index.insert(b"p" * 1000 + b"%03d" % value, value, 1 + value)
    assert index.label_bytes < 1000 + 100 * 3 + 1


def test_depth_is_not_bounded_by_the_call_stack() -> None:
    index: RadixIndex[int] = RadixIndex()
    nodes = [index.insert(b"x" * length, length, length) for length in range(1, 1500)]
    assert index.match(b"x" * 6000).length == 1499
    for length, node in enumerate(nodes, start=1):
        index.remove(node, length)
    assert index.label_bytes == 0


def test_match_of_long_text_does_not_depend_on_the_number_of_siblings() -> None:
    prompt = bytes(range(1, 101)) * 1000
    few: RadixIndex[int] = RadixIndex()
    many: RadixIndex[int] = RadixIndex()
    few.insert(prompt + b"few", 0, 1)
    for value in range(20_000):
        many.insert(prompt + b"%05d" % value, value, 1 + value)
    few_s, many_s = best_s(few, prompt + b"00007!"), best_s(many, prompt + b"00007!")
    assert many_s < 5 * few_s + 1e-4
    assert many_s < 0.005


def best_s(index: RadixIndex[int], key: bytes) -> float:
    times = []
    for _ in range(20):
        start = time.perf_counter()
        index.match(key)
        times.append(time.perf_counter() - start)
    return min(times)
