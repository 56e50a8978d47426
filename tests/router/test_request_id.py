"""A call has one name for its client, for the worker and in the logs."""

import socket

import pytest

from espalier.router.request_id import MAX_LENGTH, RequestIds
from tests.router.running import router
from tests.router.scripted import reply, scripted_worker


def told_id(client: socket.socket, request: bytes) -> bool:
    """Answer with the request id that came."""
    ids = [line.partition(b": ")[2] for line in request.split(b"\r\n") if line.startswith(b"x-request-id: ")]
    client.sendall(reply(b",".join(ids)))
    return True


@pytest.mark.parametrize("name", ["x-request-id", "X-Correlation-Id", "x-trace-id", "request-id"])
def test_clients_name_reaches_the_worker_and_comes_back(name: str) -> None:
    with scripted_worker(told_id) as worker, router(worker) as client:
        answer = client.post("/generate", headers={name: "mine-1"})
        own = client.get("/workers", headers={name: "mine-2"})
    assert (answer.text, answer.headers.get_list("x-request-id")) == ("mine-1", ["mine-1"])
    assert own.headers.get_list("x-request-id") == ["mine-2"]


def test_call_without_a_name_gets_one() -> None:
    with scripted_worker(told_id) as worker, router(worker) as client:
        answers = [client.post("/generate") for _ in range(3)]
    names = [answer.headers["x-request-id"] for answer in answers]
    assert len(set(names)) == 3
    assert [answer.text for answer in answers] == names


def test_first_of_the_named_headers_wins() -> None:
    ids = RequestIds(("X-First", "x-second"))
    assert ids.of([(b"x-second", b"b"), (b"x-first", b"a"), (b"x-request-id", b"c")]) == b"a"


@pytest.mark.parametrize("unfit", [b"", b"a b", b"caf\xe9", b"x" * (MAX_LENGTH + 1)])
def test_names_that_would_spoil_a_log_are_not_taken_over(unfit: bytes) -> None:
    assert RequestIds().of([(b"x-request-id", unfit)]) not in (unfit, b"")


def test_errors_and_refused_bodies_bear_the_name() -> None:
    with router(max_payload_size=10) as client:
        for path, body in (("/generate", b""), ("/generate", b"x" * 11), ("/add_worker", b"x" * 11)):
            answer = client.post(path, content=body, headers={"x-request-id": "mine"})
            assert (answer.status_code >= 400, answer.headers["x-request-id"]) == (True, "mine")


def test_headers_to_look_at_can_be_chosen() -> None:
    with router(request_id_headers=("x-job",)) as client:
        answer = client.get("/health", headers={"x-job": "7", "x-trace-id": "8"})
    assert answer.headers["x-request-id"] == "7"
