"""Who a control call is for, and what each worker is sent."""

import json

import pytest

from espalier.calls import Call
from espalier.errors import BadRequest, NotFound, NoWorkerAvailable
from espalier.router.addressing import addressed, chosen_workers, selected_workers, without_parameters
from espalier.router.workers import Worker, WorkerPool

A, B = "http://a:1", "http://b:1"


def pool_of(*urls: str) -> WorkerPool:
    pool = WorkerPool(failure_threshold=3)
    for url in urls:
        pool.add(url)
    return pool


def call(body: object) -> Call:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Call(method="POST", path="/p", target=b"/p", headers=[], body=content, request_id="")


def bodies(told: list[tuple[Worker, Call]]) -> dict[str, object]:
    return {worker.url: json.loads(each.body) for worker, each in told}


@pytest.mark.parametrize(
    ("query", "rest"),
    [
        (b"", b""),
        (b"worker=x", b""),
        (b"timeout=3&worker=x&a=%20&worker=y", b"timeout=3&a=%20"),
        (b"%77orker=x&b", b"b"),
        (b"workers=1&aworker=2", b"workers=1&aworker=2"),
        (b"worker", b""),
    ],
)
def test_selection_is_taken_out_of_the_query_and_the_rest_stays_as_it_was(query: bytes, rest: bytes) -> None:
    assert without_parameters(query, "worker") == rest


def test_all_workers_are_asked_unless_some_are_named_by_id_or_url() -> None:
    pool = pool_of(A, B)
    first, second = pool
    assert chosen_workers(pool, []) == [first, second]
    assert chosen_workers(pool, [B]) == [second]
    assert chosen_workers(pool, [second.id, A, B]) == [second, first]


def test_worker_that_is_not_there_is_told() -> None:
    with pytest.raises(NotFound, match="http://c:1"):
        chosen_workers(pool_of(A), [A, "http://c:1"])
    with pytest.raises(NoWorkerAvailable, match="POST /add_worker"):
        chosen_workers(pool_of(), [])


def test_body_without_an_overlay_is_the_same_object_for_all() -> None:
    pool = pool_of(A, B)
    for body in (b"", b"no json", b'{"a":"workers"}', b'{"a":{"workers":{}}}'):
        asked = call(body)
        assert [each for _, each in addressed(asked, list(pool), pool)] == [asked, asked]
        assert all(each is asked for _, each in addressed(asked, list(pool), pool))


def test_overlay_gives_workers_members_of_their_own() -> None:
    pool = pool_of(A, B)
    first, second = pool
    body = {"size": 3, "rank": 0, "workers": {first.id: {"rank": 1}, B: {"rank": 2, "x": None}}}
    told = bodies(addressed(call(body), [first, second], pool))
    assert told == {A: {"size": 3, "rank": 1}, B: {"size": 3, "rank": 2, "x": None}}
    told = bodies(addressed(call({"a": 1, "workers": {A: {"b": 2}}}), [first, second], pool))
    assert told == {A: {"a": 1, "b": 2}, B: {"a": 1}}


@pytest.mark.parametrize("overlay", [[], {A: 1}, "x", None])
def test_overlay_that_is_malformed_is_told(overlay: object) -> None:
    pool = pool_of(A)
    with pytest.raises(BadRequest, match="workers: expected an object of objects"):
        addressed(call({"workers": overlay}), list(pool), pool)


def test_overlay_for_a_worker_that_is_unknown_or_not_asked_is_told() -> None:
    pool = pool_of(A, B)
    with pytest.raises(NotFound, match="http://c:1"):
        addressed(call({"workers": {"http://c:1": {}}}), list(pool), pool)
    with pytest.raises(BadRequest, match=r"http://b:1.*\?worker= does not name it"):
        addressed(call({"workers": {B: {}}}), [pool.find(A)], pool)


def test_selector_takes_the_workers_that_fit_all_its_terms() -> None:
    pool = pool_of(A, B)
    first, second = pool
    assert selected_workers(pool, []) == [first, second]
    assert selected_workers(pool, ["engine=sglang"]) == [first, second]
    assert selected_workers(pool, [f"engine=sglang,url={B}"]) == [second]
    assert selected_workers(pool, [f"id={first.id}", "worker_type=regular"]) == [first]


def test_selector_that_fits_nobody_or_cannot_be_read_is_told() -> None:
    pool = pool_of(A)
    with pytest.raises(NotFound, match="engine=vllm"):
        selected_workers(pool, ["engine=vllm"])
    for selector in ("engine", "colour=red"):
        with pytest.raises(BadRequest, match="known keys are engine, id, url, worker_type"):
            selected_workers(pool, [selector])
    with pytest.raises(NoWorkerAvailable):
        selected_workers(pool_of(), [])
