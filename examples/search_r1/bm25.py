"""A small search engine: BM25 over passages that are all in memory.

Source: Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009; the logarithm
has one added inside, as in Lucene, so that no word counts against a passage.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

K1 = 1.2
"""How soon a word that stands there again counts no more."""

B = 0.75
"""How much a long passage counts less than a short one."""

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Passage:
    """A short text that is found as a whole."""

    title: str
    text: str


class Index:
    """Finds passages by their words."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self._passages = tuple(passages)
        counts = [Counter(words(f"{passage.title} {passage.text}")) for passage in passages]
        lengths = [count.total() for count in counts]
        mean_length = sum(lengths) / max(len(lengths), 1)
        self._scores: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for number, (count, length) in enumerate(zip(counts, lengths, strict=True)):
            norm = K1 * (1 - B + B * length / mean_length)
            for word, times in count.items():
                self._scores[word].append((number, times * (K1 + 1) / (times + norm)))

    def search(self, query: str, k: int) -> list[Passage]:
        """Return up to `k` passages that share words with `query`, best first, equal ones in their order."""
        total: dict[int, float] = defaultdict(float)
        for word in dict.fromkeys(words(query)):
            found = self._scores.get(word, [])
            rarity = math.log(1 + (len(self._passages) - len(found) + 0.5) / (len(found) + 0.5))
            for number, score in found:
                total[number] += rarity * score
        best = sorted(total, key=lambda number: (-total[number], number))[:k]
        return [self._passages[number] for number in best]


def words(text: str) -> list[str]:
    """Return the words of `text` in lower case."""
    return _WORD.findall(text.lower())
