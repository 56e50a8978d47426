"""The workers, and which of them may be asked.

*Invariant*: `routable` holds exactly the workers whose health lets calls go there, by ascending ordinal; only
where there are none, those that are paused and else well, at which calls wait until they go on.

**Stale weights.** A worker is behind where it serves other weights than the newest, which are the newest
among those that living workers serve. What is newest never falls because workers die, or come back with
unnamed weights: an engine that crashed has loaded the checkpoint of the start. It does fall when somebody
adds or removes a worker, tells a version, or loads weights of another name, so that a training that begins
again, with lower numbers or beside the dead engines of its last run, is not refused.

A framework that updates its engines itself, one after the other, makes this a race: the first probe that sees
the new version at one worker knows of the others only what they served some seconds ago. Taken at its word,
that would empty the fleet just when all of it is fresh. So every reading carries the *moment* at which it was
begun (a counter, not a clock), and a worker in service is called stale only on a reading that was begun after
the newest version was first seen; until then it is *in doubt*, keeps its calls, and is probed at once. One
that is not in service has no calls to lose, and no benefit of the doubt. The other way round, a reading that
was begun before somebody else told the worker's version comes too late, and is not used.

A worker that joins a fleet with named weights takes calls once its own version has been read, a few
milliseconds later: frameworks replace a crashed engine by one that has just loaded the checkpoint of the
start. Without probes that would be never, so then it takes calls at once.
"""

import itertools
import logging
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from ..errors import NotFound
from .health import Health, Signal, State, Thresholds, next_health
from .origin import Origin
from .versions import MAX_VERSION_CHARS, UNNAMED, VersionOrder

WARNED_OF: Final = frozenset({State.SUSPECT, State.DEAD, State.STALE})
"""States that somebody should look at."""

_log = logging.getLogger("espalier.router")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeRecord:
    """What the last probe of a worker found. `ended_at` is in seconds since the epoch."""

    outcome: Signal
    ended_at: float
    took_s: float
    detail: str = ""


@dataclass(slots=True, eq=False, kw_only=True)
class Worker:
    """One SGLang server. `url` is kept as it was given: frameworks compare it verbatim."""

    url: str
    ordinal: int
    worker_type: str = "regular"
    api_key: str | None = field(default=None, repr=False)
    """Bearer key for probes; calls carry their client's own."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    in_flight: int = 0
    health: Health = field(default_factory=Health)
    replies: Counter[int] = field(default_factory=Counter)
    """Replies by status; failures of the exchange count as the status they become."""
    weight_version: str | None = None
    """The weights it was last known to serve."""
    version_as_of: int = 0
    """The moment of the reading that told the version."""
    last_probe: ProbeRecord | None = None
    origin: Origin = field(init=False)

    def __post_init__(self) -> None:
        """Parse the URL.

        Raises: BadRequest where it is not http://host:port.
        """
        self.origin = Origin.parse(self.url)

    @property
    def is_routable(self) -> bool:
        """Whether calls may go there."""
        return self.health.is_routable

    @property
    def is_in_service(self) -> bool:
        """Whether it takes calls, or would if it were not paused or stale."""
        return self.health.contact is not State.DEAD and not self.health.is_unread


class WorkerPool:
    """All workers, in the order they came."""

    def __init__(
        self,
        *,
        failure_threshold: int = Thresholds().failures,
        success_threshold: int = Thresholds().successes,
        allow_stale_workers: bool = False,
    ) -> None:
        """Set how many failures in a row kill a worker, and how many answered probes bring it back."""
        self._thresholds = Thresholds(failures=failure_threshold, successes=success_threshold)
        self._allow_stale = allow_stale_workers
        self._by_url: dict[str, Worker] = {}
        self._leaving: list[Worker] = []
        self._ordinals = itertools.count(1)
        self._routable: tuple[Worker, ...] = ()
        self._versions = VersionOrder()
        self._newest: str | None = None
        self._newest_since = 0
        self.moment = 0
        """Counts what was told of weight versions; a reading keeps the moment at which it was begun."""
        self.on_doubt: Callable[[Worker], None] | None = None
        """Called with a worker that should be probed now. Set while somebody probes."""

    def __iter__(self) -> Iterator[Worker]:
        """Iterate over all workers, oldest first; not those that are draining."""
        return iter(tuple(self._by_url.values()))

    def __len__(self) -> int:
        """Count all workers, without those that are draining."""
        return len(self._by_url)

    @property
    def routable(self) -> Sequence[Worker]:
        """The workers that calls may go to, by ascending ordinal."""
        return self._routable

    @property
    def draining(self) -> Sequence[Worker]:
        """The workers that were removed and still hold calls, in the order they were removed."""
        self._leaving = [worker for worker in self._leaving if worker.in_flight]
        return tuple(self._leaving)

    @property
    def newest_weight_version(self) -> str | None:
        """The newest version that a worker is known to serve; None where nothing is known."""
        return self._newest

    def add(
        self, url: str, worker_type: str = "regular", *, api_key: str | None = None
    ) -> tuple[Worker, bool]:
        """Add a worker; return it, and whether it is new.

        A dead one that is added again is probed at once, or taken for alive where nobody probes.

        Raises: BadRequest where the URL is not valid.
        """
        worker = self._by_url.get(url)
        if worker is not None:
            worker.api_key = api_key or worker.api_key
            if worker.health.contact is State.DEAD:
                self._vouch(worker)
            return worker, False
        is_unread = (
            self.on_doubt is not None and self._newest not in (None, UNNAMED) and not self._allow_stale
        )
        worker = Worker(
            url=url,
            ordinal=next(self._ordinals),
            worker_type=worker_type,
            api_key=api_key,
            health=Health(is_unread=is_unread),
        )
        self._by_url[url] = worker
        self._refresh()
        _log.info("event=worker_added worker=%s id=%s", url, worker.id)
        self._doubt(worker)
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
        self._leaving = [*self.draining, worker]
        self.report(worker, Signal.REMOVED)
        self._refresh()
        self._doubt(worker)
        self._find_newest(self._served())
        return worker

    def report(self, worker: Worker, signal: Signal) -> None:
        """Tell what was seen of a worker. A reply of a healthy worker, as nearly all are, costs nothing."""
        before = worker.health
        if signal is Signal.CALL_OK and before.contact is State.HEALTHY:
            return
        after = next_health(before, signal, self._thresholds)
        if after is before:
            return
        worker.health = after
        was, now = before.state, after.state
        if before.is_routable != after.is_routable or before.keeps_waiting != after.keeps_waiting:
            self._refresh()
        if now is not was:
            level = logging.WARNING if now in WARNED_OF else logging.INFO
            _log.log(
                level, "event=worker_state worker=%s from=%s to=%s reason=%s", worker.url, was, now, signal
            )
            if now is State.SUSPECT and was is not State.DEAD:
                self._doubt(worker)
            elif now is State.DEAD:
                self._judge(worker)

    def note_weight_version(self, worker: Worker, version: str, *, as_of: int | None = None) -> None:
        """Tell which weights a worker serves; `as_of` is the `moment` at which it was asked, now if absent.

        News from before the last that were told of this worker are not used.
        """
        if worker.health.is_draining or (as_of is not None and as_of < worker.version_as_of):
            return
        before, version = worker.weight_version, version[:MAX_VERSION_CHARS]
        self.moment += 1
        worker.version_as_of = self.moment if as_of is None else as_of
        if version != before:
            _log.info("event=weight_version worker=%s from=%r to=%r", worker.url, before, version)
            worker.weight_version = version
            self._versions.see(version)
        if version != before or worker.health.contact is State.DEAD:
            may_fall = version != UNNAMED or before is None or as_of is None
            kept = () if may_fall or self._newest is None else (self._newest,)
            if self._find_newest((version, *self._served(), *kept)):
                return
        self._judge(worker)

    def _served(self) -> list[str]:
        """Return the versions that living workers are known to serve."""
        return [
            worker.weight_version
            for worker in self._by_url.values()
            if worker.weight_version is not None and worker.health.contact is not State.DEAD
        ]

    def _find_newest(self, versions: Collection[str]) -> bool:
        """Look which of `versions` is the newest; where it is another one than before, judge all workers."""
        newest = self._versions.newest(versions)
        if newest == self._newest:
            return False
        _log.info("event=newest_weight_version from=%r to=%r", self._newest, newest)
        self._newest = newest
        self.moment += 1
        self._newest_since = self.moment
        for worker in self:
            self._judge(worker)
        return True

    def _judge(self, worker: Worker) -> None:
        """Decide whether a worker is behind; where its reading is too old to tell, have it probed."""
        if self._allow_stale or worker.weight_version is None:
            return
        if worker.weight_version == self._newest:
            self.report(worker, Signal.CAUGHT_UP)
        elif worker.version_as_of >= self._newest_since or not worker.is_in_service:
            self.report(worker, Signal.FELL_BEHIND)
        else:
            self._doubt(worker)

    def _vouch(self, worker: Worker) -> None:
        """Take somebody's word for it that a dead worker is there; what it served is not known any more."""
        worker.weight_version = None
        self.report(worker, Signal.ADDED_AGAIN)
        if self.on_doubt is None:
            self.report(worker, Signal.PROBE_OK)
        else:
            self.on_doubt(worker)

    def _doubt(self, worker: Worker) -> None:
        if self.on_doubt is not None:
            self.on_doubt(worker)

    def _refresh(self) -> None:
        workers = self._by_url.values()
        routable = tuple(worker for worker in workers if worker.health.is_routable)
        self._routable = routable or tuple(worker for worker in workers if worker.health.keeps_waiting)
