from hypothesis import given
from hypothesis import strategies as st

from espalier.simulator.prefix_cache import PrefixCache

SEQUENCES = st.lists(st.lists(st.integers(0, 3), max_size=6), max_size=12)


@given(SEQUENCES, st.lists(st.integers(0, 3), max_size=8))
def test_longest_prefix_is_that_of_a_naive_search(sequences: list[list[int]], ids: list[int]) -> None:
    cache = PrefixCache(max_tokens=1000)
    for sequence in sequences:
        cache.add(sequence)

    def common(sequence: list[int]) -> int:
        pairs = zip(sequence, ids, strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(sequence), len(ids)))

    assert cache.longest_prefix(ids) == max(map(common, sequences), default=0)


def test_large_ids_are_compared_whole() -> None:
    cache = PrefixCache(max_tokens=10)
    cache.add([256, 257])
    assert cache.longest_prefix([256, 513]) == 1


def test_oldest_sequence_goes_first() -> None:
    cache = PrefixCache(max_tokens=6)
    for first in (1, 2, 3):
        cache.add([first, 0, 0])
    assert [cache.longest_prefix([first, 0, 0]) for first in (1, 2, 3)] == [0, 3, 3]


def test_cleared_cache_knows_nothing() -> None:
    cache = PrefixCache(max_tokens=10)
    cache.add([1, 2])
    cache.clear()
    assert cache.longest_prefix([1, 2]) == 0
