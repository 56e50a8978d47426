"""What became of the calls: one record for each, added up by path for `/metrics`.

A call costs one small object, three looks at the clock, and some ten additions. What a client can choose
freely never becomes a label: paths that are not known count together as `other`.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from time import perf_counter
from typing import Final

import msgspec

from ..errors import ConfigError
from .histogram import Histogram

DURATION_BOUNDS_S: Final = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
    *(60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 14400.0),
)
"""From what the router itself takes up to the longest call that it allows, in seconds."""

CLIENT_GONE: Final = 499
"""Stands as the status of a call whose client hung up before a reply began; nginx writes it so."""

OTHER_PATH: Final = "other"
"""The label of all paths that are not known."""

MAX_PENDING: Final = 256
"""Records that are added up at a time, which takes a tenth of a millisecond."""

DATA_PATHS: Final = frozenset(
    {
        "/generate",
        "/encode",
        "/classify",
        "/tokenize",
        "/detokenize",
        "/health_generate",
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/embeddings",
        "/v1/classify",
        "/v1/rerank",
        "/v1/score",
        "/v1/tokenize",
        "/v1/detokenize",
        "/v1/models",
    }
)
"""What clients ask workers for, each a label of its own."""


class CallRecord(msgspec.Struct, gc=False):
    """What happened to one call so far. Times are those of `time.perf_counter`, in seconds.

    A Struct that the garbage collector leaves alone: there is one for each call, and none is in a cycle.
    """

    method: str
    path: str
    request_id: bytes
    client: tuple[str, int] | None
    began_s: float
    status: int = CLIENT_GONE
    head_s: float = 0.0
    """When the reply's head was sent, of a stream; a whole reply's head leaves with its end."""
    ended_s: float = 0.0
    request_bytes: int = 0
    reply_bytes: int = 0
    """Bytes of body, without heads and framing."""


OnEnd = Callable[[CallRecord], None]
"""Gets the record of each call that has ended."""


class PathFigures:
    """What the calls of one path add up to."""

    __slots__ = ("durations", "first_bytes", "replies", "reply_bytes", "request_bytes")

    def __init__(self, bounds_s: Sequence[float]) -> None:
        self.replies: Counter[tuple[str, int]] = Counter()
        """Calls by method and status."""
        self.first_bytes = Histogram(bounds_s)
        """Seconds from a request's head to its reply's, of calls that had one."""
        self.durations = Histogram(bounds_s)
        """Seconds from a request's head to its reply's last byte, or to where it broke off."""
        self.request_bytes = 0
        self.reply_bytes = 0


class Ledger:
    """Adds up records; `label_of` names a path among a bounded number of labels.

    Records are kept for a moment and added up many at a time: what they have in common is then done once,
    and code that runs in a row finds itself in the processor's caches.
    """

    def __init__(
        self, label_of: Callable[[str], str] | None = None, *, bounds_s: Sequence[float] = DURATION_BOUNDS_S
    ) -> None:
        self._label_of = label_of or path_label
        self._bounds_s = bounds_s
        self._by_label: dict[str, PathFigures] = {}
        self._pending: list[CallRecord] = []

    def __iter__(self) -> Iterator[tuple[str, PathFigures]]:
        """Iterate over labels and their figures, in order of the labels."""
        self._add_up()
        return iter(sorted(self._by_label.items()))

    def add(self, record: CallRecord) -> None:
        """Add a call that has just ended."""
        record.ended_s = perf_counter()
        self._pending.append(record)
        if len(self._pending) == MAX_PENDING:
            self._add_up()

    def _add_up(self) -> None:
        pending, self._pending = self._pending, []
        alike: dict[tuple[str, str, int], list[CallRecord]] = {}
        for record in pending:
            kind = (record.path, record.method, record.status)
            if kind in alike:
                alike[kind].append(record)
            else:
                alike[kind] = [record]
        for (path, method, status), records in alike.items():
            figures = self._figures(self._label_of(path))
            figures.replies[method, status] += len(records)
            figures.request_bytes += sum([record.request_bytes for record in records])
            figures.reply_bytes += sum([record.reply_bytes for record in records])
            figures.durations.add([record.ended_s - record.began_s for record in records])
            if status != CLIENT_GONE:
                figures.first_bytes.add([(each.head_s or each.ended_s) - each.began_s for each in records])

    def _figures(self, label: str) -> PathFigures:
        figures = self._by_label.get(label)
        if figures is None:
            figures = self._by_label[label] = PathFigures(self._bounds_s)
        return figures


def duration_bounds_s(texts: Sequence[str]) -> Sequence[float]:
    """Return the upper ends of the duration histograms' buckets: `texts`, or ours where there are none.

    Raises: ConfigError where they are not numbers that ascend.
    """
    if not texts:
        return DURATION_BOUNDS_S
    try:
        bounds_s = [float(text) for text in texts]
    except ValueError:
        bounds_s = []
    if not bounds_s or not all(low < high for low, high in pairwise([0.0, *bounds_s, float("inf")])):
        raise ConfigError(
            f"--prometheus-duration-buckets {' '.join(texts)}: expected seconds above 0, in ascending order"
        )
    return bounds_s


def path_label(path: str) -> str:
    """Return the label of a data-plane path."""
    return path if path in DATA_PATHS else OTHER_PATH
