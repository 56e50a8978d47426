import pytest

from espalier.errors import BadRequest, NotFound
from espalier.router.health import Signal, State
from espalier.router.workers import WorkerPool

URLS = ("http://a:1", "http://b:1", "http://c:1")


def pool_of(*urls: str) -> WorkerPool:
    pool = WorkerPool(failure_threshold=2)
    for url in urls:
        pool.add(url)
    return pool


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


def test_worker_dies_of_refusals_in_a_row_and_is_routable_again_once_it_is_added_again() -> None:
    pool = pool_of(*URLS)
    worker = pool.find(URLS[1])
    for signal in (Signal.CONNECT_FAILED, Signal.CALL_OK, Signal.CONNECT_FAILED):
        pool.report(worker, signal)
    assert worker in pool.routable
    pool.report(worker, Signal.CONNECT_FAILED)
    assert [other.url for other in pool.routable] == [URLS[0], URLS[2]]
    pool.add(URLS[1])
    assert [other.url for other in pool.routable] == list(URLS)
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


def test_report_of_a_worker_that_left_does_not_bring_it_back() -> None:
    pool = pool_of(*URLS)
    left = pool.remove(URLS[0])
    for _ in range(2):
        pool.report(left, Signal.CONNECT_FAILED)
    pool.report(left, Signal.CALL_OK)
    assert left not in pool.routable


def test_worker_whose_url_is_not_valid_is_not_added() -> None:
    pool = pool_of()
    with pytest.raises(BadRequest):
        pool.add("h:1")
    assert len(pool) == 0
    assert list(pool.routable) == []
