"""The workers, and which of them may be asked."""

import itertools
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ..errors import NotFound
from .health import Health, Signal, next_health
from .origin import Origin


@dataclass(slots=True, eq=False, kw_only=True)
class Worker:
    """One SGLang server. `url` is kept as it was given: frameworks compare it verbatim."""

    url: str
    ordinal: int
    worker_type: str = "regular"
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    in_flight: int = 0
    health: Health = field(default_factory=Health)
    replies: Counter[int] = field(default_factory=Counter)
    """Replies by status; failures of the exchange count as the status they become."""
    weight_version: str | None = None
    """The weights it was last known to serve."""
    is_stale: bool = False
    """Whether it serves other weights than the newest."""
    origin: Origin = field(init=False)

    def __post_init__(self) -> None:
        """Parse the URL.

        Raises: BadRequest where it is not http://host:port.
        """
        self.origin = Origin.parse(self.url)

    @property
    def is_routable(self) -> bool:
        """Whether calls may go there."""
        return self.health.is_routable and not self.is_stale


class WorkerPool:
    """All workers, in the order they came."""

    def __init__(self, *, failure_threshold: int) -> None:
        """Take a worker for dead after `failure_threshold` refused connections in a row."""
        self._failure_threshold = failure_threshold
        self._by_url: dict[str, Worker] = {}
        self._ordinals = itertools.count(1)
        self._routable: tuple[Worker, ...] = ()
        self._versions: list[str] = []

    def __iter__(self) -> Iterator[Worker]:
        """Iterate over all workers, oldest first."""
        return iter(tuple(self._by_url.values()))

    def __len__(self) -> int:
        """Count all workers."""
        return len(self._by_url)

    @property
    def routable(self) -> Sequence[Worker]:
        """The workers that calls may go to, by ascending ordinal."""
        return self._routable

    def add(self, url: str, worker_type: str = "regular") -> tuple[Worker, bool]:
        """Add a worker; return it, and whether it is new. Adding one again revives it if it was dead.

        Raises: BadRequest where the URL is not valid.
        """
        worker = self._by_url.get(url)
        if worker is not None:
            self.report(worker, Signal.PROBE_OK)
            return worker, False
        worker = Worker(url=url, ordinal=next(self._ordinals), worker_type=worker_type)
        self._by_url[url] = worker
        self._refresh()
        return worker, True

    def find(self, id_or_url: str) -> Worker:
        """Return the worker of that id or URL.

        Raises: NotFound
        """
        worker = self._by_url.get(id_or_url)
        if worker is None:
            worker = next((one for one in self._by_url.values() if one.id == id_or_url), None)
        if worker is None:
            raise NotFound(f"There is no worker {id_or_url!r}; GET /workers lists them")
        return worker

    def remove(self, id_or_url: str) -> Worker:
        """Take a worker out of rotation; calls that it holds go on to their end. Return it.

        Raises: NotFound
        """
        worker = self.find(id_or_url)
        del self._by_url[worker.url]
        self._refresh()
        return worker

    def report(self, worker: Worker, signal: Signal) -> None:
        """Tell what was seen of a worker."""
        before = worker.health
        worker.health = next_health(before, signal, failure_threshold=self._failure_threshold)
        if worker.health.is_routable != before.is_routable:
            self._refresh()

    @property
    def newest_weight_version(self) -> str | None:
        """The version that was seen last for the first time, among those that workers serve now."""
        served = {worker.weight_version for worker in self._by_url.values()}
        return next((version for version in reversed(self._versions) if version in served), None)

    def note_weight_version(self, worker: Worker, version: str) -> None:
        """Tell which weights a worker serves."""
        worker.weight_version = version
        if version not in self._versions:
            self._versions.append(version)
        newest = self.newest_weight_version
        for one in self._by_url.values():
            one.is_stale = one.weight_version not in (None, newest)
        self._refresh()

    def _refresh(self) -> None:
        self._routable = tuple(worker for worker in self._by_url.values() if worker.is_routable)
