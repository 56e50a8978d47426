"""The pool against a naive model of it, under any order of events."""

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
)

from espalier.router.health import Signal
from espalier.router.workers import Worker, WorkerPool

FAILURES_TO_DIE, SUCCESSES_TO_REVIVE = 2, 2

URLS = [f"http://w:{port}" for port in range(1, 5)]

VERSIONS = ["default", "1", "2", "10", "a", "b"]

FAILURES = [Signal.CONNECT_FAILED, Signal.CALL_BROKEN, Signal.PROBE_FAILED]


@dataclass(eq=False)
class Naive:
    """What the model knows of a worker; everything else is worked out from it each time."""

    worker: Worker
    is_alive: bool = True
    is_suspect: bool = False
    is_proven: bool = False
    failures: int = 0
    successes: int = 0
    is_unread: bool = False
    is_paused: bool = False
    is_behind: bool = False
    version: str | None = None
    read_at: int = 0

    @property
    def is_well(self) -> bool:
        return self.is_alive and not self.is_behind and not self.is_unread

    @property
    def shown(self) -> str:
        if not self.is_alive:
            return "dead"
        if self.is_behind:
            return "stale"
        if self.is_unread:
            return "starting"
        if self.is_paused:
            return "paused"
        return "suspect" if self.is_suspect else "healthy" if self.is_proven else "starting"


@dataclass
class Reading:
    """A probe on its way: when it was begun, for the pool and for the model."""

    of: Naive
    moment: int
    step: int


class PoolMachine(RuleBasedStateMachine):
    """Every event is told to the pool and to the model; what they show must be equal after each."""

    readings: Bundle[Reading] = Bundle("readings")

    def __init__(self) -> None:
        super().__init__()
        self.pool = WorkerPool(failure_threshold=FAILURES_TO_DIE, success_threshold=SUCCESSES_TO_REVIVE)
        self.doubted: dict[Worker, str | None] = {}
        self.pool.on_doubt = self.keep_doubt
        self.model: dict[str, Naive] = {}
        self.gone: list[Naive] = []
        self.seen: list[str] = []
        self.newest: str | None = None
        self.newest_since = 0
        self.step = 0

    def keep_doubt(self, worker: Worker) -> None:
        self.doubted[worker] = self.pool.newest_weight_version

    def tick(self) -> int:
        self.step += 1
        return self.step

    def living_versions(self) -> list[str]:
        return [each.version for each in self.model.values() if each.version and each.is_alive]

    def choose_newest(self, versions: list[str]) -> None:
        named = [version for version in versions if version != "default"]
        newest: str | None
        if named and all(version.isdigit() for version in named):
            newest = str(max(int(version) for version in named))
        elif named:
            newest = max(named, key=self.seen.index)
        else:
            newest = "default" if versions else None
        if newest != self.newest:
            self.newest, self.newest_since = newest, self.tick()

    def judge_all(self) -> None:
        for each in self.model.values():
            if each.version is None:
                continue
            if each.version == self.newest:
                each.is_behind = False
            elif each.read_at >= self.newest_since or not each.is_alive or each.is_unread:
                each.is_behind = True

    @rule(url=st.sampled_from(URLS))
    def add(self, url: str) -> None:
        worker, is_new = self.pool.add(url)
        assert is_new == (url not in self.model)
        if is_new:
            self.model[url] = Naive(worker, is_unread=self.newest not in (None, "default"))
        elif not self.model[url].is_alive:
            again = self.model[url]
            again.successes, again.version, again.is_behind = SUCCESSES_TO_REVIVE - 1, None, False

    @rule(url=st.sampled_from(URLS))
    def remove(self, url: str) -> None:
        if url in self.model:
            self.pool.remove(url)
            self.gone.append(self.model.pop(url))
            self.choose_newest(self.living_versions())
            self.judge_all()

    @rule(url=st.sampled_from(URLS))
    def call_begins(self, url: str) -> None:
        if url in self.model:
            self.model[url].worker.in_flight += 1

    @rule(url=st.sampled_from(URLS))
    def call_ends(self, url: str) -> None:
        for each in [*self.gone, *self.model.values()]:
            if each.worker.url == url and each.worker.in_flight:
                each.worker.in_flight -= 1
                return

    @rule(url=st.sampled_from(URLS))
    def reply(self, url: str) -> None:
        each = self.model.get(url)
        if each is not None:
            self.pool.report(each.worker, Signal.CALL_OK)
            if each.is_alive:
                each.failures, each.successes, each.is_proven, each.is_suspect = 0, 0, True, False

    @rule(url=st.sampled_from(URLS), signal=st.sampled_from(FAILURES))
    def failure(self, url: str, signal: Signal) -> None:
        each = self.model.get(url)
        if each is not None:
            self.pool.report(each.worker, signal)
            each.successes, each.is_suspect = 0, True
            each.failures += 1
            if each.failures >= FAILURES_TO_DIE:
                each.is_alive = False
            self.judge_all()

    @rule(url=st.sampled_from(URLS), signal=st.sampled_from([Signal.PROBE_OK, Signal.PROBE_PAUSED]))
    def answered_probe(self, url: str, signal: Signal) -> None:
        each = self.model.get(url)
        if each is not None:
            self.pool.report(each.worker, signal)
            each.is_paused, each.is_unread = signal is Signal.PROBE_PAUSED, False
            each.is_proven = True
            each.successes += 1
            if each.is_suspect and each.successes >= SUCCESSES_TO_REVIVE:
                each.is_suspect = not each.is_alive
                each.is_alive, each.failures, each.successes = True, 0, 0

    @rule(url=st.sampled_from(URLS), signal=st.sampled_from([Signal.PAUSED, Signal.RESUMED]))
    def told_to_pause_or_go_on(self, url: str, signal: Signal) -> None:
        each = self.model.get(url)
        if each is not None:
            self.pool.report(each.worker, signal)
            each.is_paused = signal is Signal.PAUSED

    @rule(url=st.sampled_from(URLS), version=st.sampled_from(VERSIONS))
    def version_is_told(self, url: str, version: str) -> None:
        each = self.model.get(url)
        if each is not None:
            self.pool.note_weight_version(each.worker, version)
            self.accept(each, version, self.tick(), is_told=True)

    @rule(target=readings, url=st.sampled_from(URLS))
    def reading_begins(self, url: str) -> "Reading | MultipleResults[Reading]":
        each = self.model.get(url)
        return multiple() if each is None else Reading(each, self.pool.moment, self.step)

    @rule(reading=consumes(readings), version=st.sampled_from(VERSIONS))
    def reading_ends(self, reading: Reading, version: str) -> None:
        each = reading.of
        self.pool.note_weight_version(each.worker, version, as_of=reading.moment)
        if each in self.model.values() and reading.step >= each.read_at:
            self.accept(each, version, reading.step, is_told=False)

    def accept(self, each: Naive, version: str, read_at: int, *, is_told: bool) -> None:
        before, each.version, each.read_at = each.version, version, read_at
        if version not in self.seen:
            self.seen.append(version)
        if version != before or not each.is_alive:
            falls = is_told or version != "default" or before is None
            kept = [] if falls or self.newest is None else [self.newest]
            self.choose_newest([*self.living_versions(), version, *kept])
        self.judge_all()

    @invariant()
    def same_workers_states_and_versions(self) -> None:
        shown = [(w.url, str(w.health.state), w.weight_version) for w in self.pool]
        assert shown == [(url, each.shown, each.version) for url, each in self.model.items()]
        assert self.pool.newest_weight_version == self.newest

    @invariant()
    def whoever_is_in_doubt_is_probed(self) -> None:
        for each in self.model.values():
            if each.version not in (None, self.newest) and not each.is_behind:
                assert self.doubted[each.worker] == self.newest

    @invariant()
    def same_routable_workers(self) -> None:
        well = [each for each in self.model.values() if each.is_well]
        awake = [each for each in well if not each.is_paused]
        assert list(self.pool.routable) == [each.worker for each in awake or well]

    @invariant()
    def same_draining_workers(self) -> None:
        assert list(self.pool.draining) == [each.worker for each in self.gone if each.worker.in_flight]


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
