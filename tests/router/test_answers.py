"""When a worker has done what it was asked, and how that is told."""

import pytest

from espalier.router.answers import Answer, Report, report_of, status_of, told, told_as_smg
from espalier.router.workers import Worker

WORKER = Worker(url="http://a:1", ordinal=1, id="a")
OTHER = Worker(url="http://b:1", ordinal=2, id="b")


def answer(status: int, body: object, worker: Worker = WORKER) -> Answer:
    return Answer(worker=worker, status=status, body=body, latency_s=0.0123)


@pytest.mark.parametrize(
    ("status", "body", "succeeded"),
    [
        (200, None, True),
        (200, "Cache flushed.\n", True),
        (200, {"success": True}, True),
        (200, {"message": "ok"}, True),
        (200, {"success": False, "message": "no"}, False),
        (400, {"success": True}, False),
        (404, None, False),
        (302, None, False),
    ],
)
def test_success_takes_the_status_and_what_the_body_says(status: int, body: object, succeeded: bool) -> None:
    assert answer(status, body).succeeded is succeeded


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"success": False, "message": "not flushed"}, "not flushed"),
        ({"error": "Unauthorized"}, "Unauthorized"),
        ({"error": {"message": "too long"}}, "too long"),
        ({"detail": "Not Found"}, "Not Found"),
        ("Flush cache failed.\n", "Flush cache failed."),
        (None, "HTTP 400"),
        ({}, "HTTP 400"),
        ([1], "HTTP 400"),
        ({"error": {"code": 3}}, "HTTP 400"),
        ("x" * 9999, "x" * 500),
    ],
)
def test_reason_of_a_failure_is_found_in_every_shape_of_error(body: object, message: str) -> None:
    assert answer(400, body).message == message


@pytest.mark.parametrize(("succeeded", "status"), [(0, 502), (1, 207), (2, 207), (3, 200)])
def test_status_tells_how_many_succeeded(succeeded: int, status: int) -> None:
    assert status_of(succeeded, 3) == status


def test_all_workers_are_told_in_one_shape() -> None:
    good = answer(200, {"success": True})
    bad = Answer(worker=OTHER, status=504, body={"error": "late"}, latency_s=2, code="upstream_timeout")
    failed = [
        {
            "worker_id": "b",
            "url": "http://b:1",
            "status": 504,
            "error": "upstream_timeout",
            "message": "late",
        }
    ]
    first = {
        "url": "http://a:1",
        "status": 200,
        "success": True,
        "latency_ms": 12.3,
        "body": {"success": True},
    }
    second = {
        "url": "http://b:1",
        "status": 504,
        "success": False,
        "latency_ms": 2000.0,
        "body": {"error": "late"},
    }
    assert told([good, bad]) == {
        "total": 2,
        "succeeded": 1,
        "results": {"a": first, "b": second},
        "failed": failed,
    }
    assert told_as_smg([good, bad])["results"] == {"a": first}
    assert told_as_smg([good, bad])["failed"] == failed


def test_report_is_read_from_what_a_worker_tells_of_its_model() -> None:
    info = {"weight_version": "3", "model_path": "/m", "is_generation": True}
    assert report_of(answer(200, info)) == Report(weight_version="3", model_path="/m")
    assert report_of(answer(200, {})) == Report(weight_version=None, model_path=None)
    for status, body in ((401, info), (200, "up"), (200, {"weight_version": 3}), (200, None)):
        assert report_of(answer(status, body)) is None
