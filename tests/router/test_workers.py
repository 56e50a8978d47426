import logging

import pytest

from espalier.errors import BadRequest, NotFound
from espalier.router.health import Signal, State
from espalier.router.versions import MAX_VERSION_CHARS
from espalier.router.workers import Worker, WorkerPool

URLS = ("http://a:1", "http://b:1", "http://c:1")


def pool_of(*urls: str) -> WorkerPool:
    pool = WorkerPool(failure_threshold=2, success_threshold=2)
    for url in urls:
        pool.add(url)
    return pool


def probed_pool_of(*urls: str) -> tuple[WorkerPool, list[str]]:
    """Return a pool that somebody probes, and the URLs that it doubted so far, which grow."""
    doubted: list[str] = []
    pool = pool_of(*urls)
    pool.on_doubt = lambda worker: doubted.append(worker.url)
    return pool, doubted


def states(pool: WorkerPool) -> list[State]:
    return [worker.health.state for worker in pool]


def routable(pool: WorkerPool) -> list[str]:
    return [worker.url for worker in pool.routable]


def kill(pool: WorkerPool, worker: Worker) -> None:
    for _ in range(2):
        pool.report(worker, Signal.CONNECT_FAILED)


def read(pool: WorkerPool, worker: Worker, version: str, *, moment: int | None = None) -> None:
    """Tell the pool of a good probe that was begun at `moment`, now unless told."""
    pool.note_weight_version(worker, version, as_of=pool.moment if moment is None else moment)
    pool.report(worker, Signal.PROBE_OK)


def test_workers_are_listed_in_the_order_they_came() -> None:
    pool = pool_of(*URLS)
    assert [worker.url for worker in pool] == list(URLS)
    assert [worker.ordinal for worker in pool.routable] == [1, 2, 3]
    assert len(pool) == 3


def test_worker_is_known_by_its_url_as_it_was_given_and_by_its_id() -> None:
    pool = pool_of("http://a:1/")
    (worker,) = pool
    assert pool.find("http://a:1/") is pool.find(worker.id) is worker
    with pytest.raises(NotFound, match="There is no worker 'http://a:1'; GET /workers lists them"):
        pool.find("http://a:1")


def test_worker_that_is_added_twice_is_one() -> None:
    pool = pool_of(URLS[0])
    worker, is_new = pool.add(URLS[0])
    assert (len(pool), is_new) == (1, False)
    assert worker is pool.find(URLS[0])
    assert worker.health.state is State.STARTING


def test_worker_dies_of_refusals_in_a_row() -> None:
    pool = pool_of(*URLS)
    worker = pool.find(URLS[1])
    for signal in (Signal.CONNECT_FAILED, Signal.CALL_OK, Signal.CONNECT_FAILED):
        pool.report(worker, signal)
    assert worker in pool.routable
    pool.report(worker, Signal.CONNECT_FAILED)
    assert routable(pool) == [URLS[0], URLS[2]]


def test_dead_worker_that_is_added_again_is_believed_where_nobody_probes() -> None:
    pool = pool_of(*URLS)
    worker = pool.find(URLS[1])
    kill(pool, worker)
    pool.add(URLS[1])
    assert routable(pool) == list(URLS)
    assert worker.health.state is State.SUSPECT


def test_dead_worker_that_is_added_again_is_probed_first_where_somebody_does() -> None:
    pool, doubted = probed_pool_of(*URLS)
    worker = pool.find(URLS[1])
    kill(pool, worker)
    doubted.clear()
    pool.add(URLS[1])
    assert (worker.health.state, doubted) == (State.DEAD, [URLS[1]])
    read(pool, worker, "1")
    assert worker.health.state is State.SUSPECT


def test_worker_that_left_is_forgotten_and_returns_as_a_new_one() -> None:
    pool = pool_of(*URLS)
    left = pool.remove(URLS[0])
    assert [worker.url for worker in pool.routable] == [worker.url for worker in pool] == list(URLS[1:])
    with pytest.raises(NotFound):
        pool.remove(left.id)
    back, is_new = pool.add(URLS[0])
    assert is_new
    assert (back.ordinal, back.id == left.id) == (4, False)


def test_worker_that_left_is_draining_while_it_holds_calls() -> None:
    pool = pool_of(*URLS)
    busy = pool.find(URLS[0])
    busy.in_flight = 2
    pool.remove(URLS[0])
    pool.remove(URLS[1])
    assert [worker.url for worker in pool.draining] == [URLS[0]]
    assert busy.health.state is State.DRAINING
    busy.in_flight = 0
    assert list(pool.draining) == []


def test_report_of_a_worker_that_left_does_not_bring_it_back() -> None:
    pool = pool_of(*URLS)
    left = pool.remove(URLS[0])
    for _ in range(2):
        pool.report(left, Signal.CONNECT_FAILED)
    pool.report(left, Signal.CALL_OK)
    assert left not in pool.routable
    pool.note_weight_version(left, "9")
    assert pool.newest_weight_version is None


def test_worker_whose_url_is_not_valid_is_not_added() -> None:
    pool = pool_of()
    with pytest.raises(BadRequest):
        pool.add("h:1")
    assert len(pool) == 0
    assert list(pool.routable) == []


def test_paused_worker_takes_calls_only_while_no_other_does() -> None:
    pool = pool_of(*URLS[:2])
    first, second = pool
    pool.report(first, Signal.PAUSED)
    assert routable(pool) == [URLS[1]]
    pool.report(second, Signal.PAUSED)
    assert routable(pool) == list(URLS[:2])
    assert [worker.is_routable for worker in pool] == [False, False]
    pool.report(second, Signal.RESUMED)
    assert routable(pool) == [URLS[1]]
    assert [worker.is_routable for worker in pool] == [False, True]
    kill(pool, second)
    assert routable(pool) == [URLS[0]]


def test_healthy_workers_calls_change_nothing() -> None:
    pool = pool_of(*URLS)
    worker = pool.find(URLS[0])
    pool.report(worker, Signal.CALL_OK)
    before, candidates = worker.health, pool.routable
    pool.report(worker, Signal.CALL_OK)
    assert worker.health is before
    assert pool.routable is candidates


def test_worker_is_doubted_when_it_joins_when_it_falls_suspect_and_when_it_leaves() -> None:
    pool, doubted = probed_pool_of()
    worker, _ = pool.add(URLS[0])
    pool.report(worker, Signal.CALL_OK)
    assert doubted == [URLS[0]]
    pool.report(worker, Signal.CALL_BROKEN)
    assert doubted == [URLS[0]] * 2
    pool.remove(worker.id)
    assert doubted == [URLS[0]] * 3


def test_change_of_state_is_logged_once_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="espalier.router")
    pool = pool_of(URLS[0])
    (worker,) = pool
    for signal in (Signal.CALL_OK, Signal.CALL_OK, Signal.CALL_BROKEN, Signal.PROBE_FAILED):
        pool.report(worker, signal)
    changes = [record.getMessage() for record in caplog.records if "worker_state" in record.getMessage()]
    assert changes == [
        f"event=worker_state worker={URLS[0]} from=starting to=healthy reason=call_ok",
        f"event=worker_state worker={URLS[0]} from=healthy to=suspect reason=call_broken",
        f"event=worker_state worker={URLS[0]} from=suspect to=dead reason=probe_failed",
    ]


def test_key_that_comes_when_a_worker_is_added_again_is_used_from_then_on() -> None:
    pool = WorkerPool()
    for given, kept in [(None, None), ("new", "new"), (None, "new"), ("newer", "newer")]:
        assert pool.add(URLS[0], api_key=given)[0].api_key == kept
    assert "newer" not in repr(pool.find(URLS[0]))


# Stale weights.


def test_version_of_any_length_takes_bounded_room() -> None:
    pool = pool_of(URLS[0])
    (worker,) = pool
    pool.note_weight_version(worker, "9" * 10_000)
    assert worker.weight_version == "9" * MAX_VERSION_CHARS
    assert routable(pool) == [URLS[0]]


def test_worker_that_is_behind_takes_no_calls_until_it_catches_up() -> None:
    pool = pool_of(*URLS[:2])
    first, second = pool
    pool.note_weight_version(first, "2")
    pool.note_weight_version(second, "1")
    assert (pool.newest_weight_version, second.weight_version) == ("2", "1")
    assert states(pool) == [State.STARTING, State.STALE]
    assert routable(pool) == [URLS[0]]
    pool.note_weight_version(second, "2")
    assert routable(pool) == list(URLS[:2])


def test_newer_version_puts_the_others_in_doubt_and_not_out_of_rotation() -> None:
    pool, doubted = probed_pool_of(*URLS)
    for worker in pool:
        read(pool, worker, "1")
    doubted.clear()
    first, second, third = pool
    read(pool, first, "2")
    assert routable(pool) == list(URLS)
    assert doubted == list(URLS[1:])
    read(pool, second, "1")
    read(pool, third, "2")
    assert states(pool) == [State.HEALTHY, State.STALE, State.HEALTHY]


def test_reading_that_was_begun_before_the_newer_version_was_seen_proves_nothing() -> None:
    pool, doubted = probed_pool_of(*URLS[:2])
    first, second = pool
    read(pool, second, "1")
    begun = pool.moment
    read(pool, first, "2")
    doubted.clear()
    read(pool, second, "1", moment=begun)
    assert second.is_routable
    assert doubted == [URLS[1]]


def test_reading_that_was_begun_before_the_version_was_told_comes_too_late() -> None:
    pool = pool_of(*URLS[:2])
    first, second = pool
    begun = pool.moment
    pool.note_weight_version(first, "2")
    pool.note_weight_version(second, "2")
    read(pool, second, "1", moment=begun)
    assert second.weight_version == "2"
    assert second.is_routable


def test_worker_that_revives_with_old_weights_is_stale_before_it_is_routable() -> None:
    pool, _ = probed_pool_of(*URLS[:2])
    first, second = pool
    for worker in pool:
        read(pool, worker, "1")
    kill(pool, second)
    begun = pool.moment
    read(pool, first, "2")
    for _ in range(3):
        read(pool, second, "default", moment=begun)
        assert routable(pool) == [URLS[0]]
    assert second.health.state is State.STALE
    read(pool, second, "2")
    assert routable(pool) == list(URLS[:2])


def test_worker_that_dies_in_doubt_and_tells_its_version_no_more_is_stale() -> None:
    pool, _ = probed_pool_of(*URLS[:2])
    first, second = pool
    for worker in pool:
        read(pool, worker, "1")
    read(pool, first, "2")
    kill(pool, second)
    for _ in range(2):
        pool.report(second, Signal.PROBE_OK)
    assert states(pool) == [State.HEALTHY, State.STALE]


def test_worker_that_joins_a_fleet_with_named_weights_takes_calls_once_its_own_are_read() -> None:
    pool, _ = probed_pool_of(URLS[0])
    (first,) = pool
    read(pool, first, "7")
    second, third = pool.add(URLS[1])[0], pool.add(URLS[2])[0]
    assert routable(pool) == [URLS[0]]
    read(pool, second, "7")
    read(pool, third, "default")
    assert routable(pool) == list(URLS[:2])
    assert states(pool) == [State.HEALTHY, State.HEALTHY, State.STALE]


def test_worker_that_tells_no_version_takes_calls_once_it_answers() -> None:
    pool, _ = probed_pool_of(URLS[0])
    (first,) = pool
    read(pool, first, "7")
    second, _ = pool.add(URLS[1])
    pool.report(second, Signal.PROBE_OK)
    assert routable(pool) == list(URLS[:2])


@pytest.mark.parametrize("newest", [None, "default"])
def test_worker_that_joins_a_fleet_of_unnamed_weights_takes_calls_at_once(newest: str | None) -> None:
    pool, _ = probed_pool_of(URLS[0])
    (first,) = pool
    if newest:
        read(pool, first, newest)
    pool.add(URLS[1])
    assert routable(pool) == list(URLS[:2])


def test_death_of_the_newest_does_not_make_old_weights_good() -> None:
    pool, _ = probed_pool_of(*URLS[:2])
    first, second = pool
    read(pool, first, "2")
    read(pool, second, "default")
    kill(pool, first)
    read(pool, second, "default")
    assert (pool.newest_weight_version, routable(pool)) == ("2", [])


def test_engine_that_restarts_alone_is_stale_until_somebody_vouches_for_it() -> None:
    pool, _ = probed_pool_of(URLS[0])
    (worker,) = pool
    read(pool, worker, "2")
    kill(pool, worker)
    for _ in range(2):
        read(pool, worker, "default")
    assert states(pool) == [State.STALE]
    kill(pool, worker)
    pool.add(URLS[0])
    read(pool, worker, "default")
    assert pool.newest_weight_version == "default"
    assert routable(pool) == [URLS[0]]


def test_training_that_begins_again_is_not_refused_because_of_the_last_ones_dead_engines() -> None:
    pool, _ = probed_pool_of(URLS[0])
    (old,) = pool
    read(pool, old, "57")
    kill(pool, old)
    new, _ = pool.add(URLS[1])
    read(pool, new, "default")
    assert (pool.newest_weight_version, routable(pool)) == ("default", [URLS[1]])


def test_training_that_goes_back_is_followed_once_no_living_worker_serves_the_higher_version() -> None:
    pool = pool_of(*URLS[:2])
    first, second = pool
    for worker in pool:
        pool.note_weight_version(worker, "57")
    pool.note_weight_version(first, "40")
    assert routable(pool) == [URLS[1]]
    pool.note_weight_version(second, "40")
    assert (pool.newest_weight_version, routable(pool)) == ("40", list(URLS[:2]))


def test_unnamed_version_is_believed_where_it_is_told_and_not_where_it_is_read() -> None:
    pool = pool_of(URLS[0])
    (worker,) = pool
    pool.note_weight_version(worker, "2")
    read(pool, worker, "default")
    assert (pool.newest_weight_version, routable(pool)) == ("2", [])
    pool.note_weight_version(worker, "2")
    pool.note_weight_version(worker, "default")
    assert (pool.newest_weight_version, routable(pool)) == ("default", [URLS[0]])


def test_newest_version_leaves_with_the_last_worker_that_serves_it() -> None:
    pool = pool_of(*URLS[:2])
    first, second = pool
    pool.note_weight_version(first, "2")
    pool.note_weight_version(second, "1")
    pool.remove(first.id)
    assert (pool.newest_weight_version, routable(pool)) == ("1", [URLS[1]])


def test_stale_workers_take_calls_where_they_are_allowed_to() -> None:
    pool = WorkerPool(allow_stale_workers=True)
    pool.on_doubt = lambda _: None
    first, second = pool.add(URLS[0])[0], pool.add(URLS[1])[0]
    pool.note_weight_version(first, "2")
    pool.note_weight_version(second, "1")
    pool.add(URLS[2])
    assert (pool.newest_weight_version, routable(pool)) == ("2", list(URLS))
