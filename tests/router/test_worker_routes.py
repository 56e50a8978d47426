"""Both worker APIs, over HTTP."""

import socket
import threading
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

import pytest

from tests.router.running import DEADLINE_S, closed_port_url, connection_to, router, until, worker_of
from tests.router.scripted import reply, scripted_worker


def test_worker_added_by_either_api_is_listed_at_once_and_verbatim() -> None:
    with router() as client:
        made = client.post("/workers", json={"url": "http://127.0.0.1:1/", "worker_type": "regular"})
        assert made.status_code == 202
        assert client.post("/add_worker", params={"url": "http://127.0.0.1:2"}).status_code == 200
        assert client.post("/add_worker", json={"worker_url": "http://127.0.0.1:3"}).status_code == 200
        assert client.post("/add_worker?url=http://127.0.0.1:3").status_code == 200
        urls = ["http://127.0.0.1:1/", "http://127.0.0.1:2", "http://127.0.0.1:3"]
        assert [worker["url"] for worker in client.get("/workers").json()["workers"]] == urls
        assert client.get("/list_workers").json() == {"urls": urls}
        assert client.get(made.headers["location"]).json()["url"] == urls[0]


def test_worker_is_removed_by_id_by_encoded_url_and_by_the_older_api() -> None:
    urls = ("http://127.0.0.1:1", "http://127.0.0.1:2", "http://127.0.0.1:3")
    with router(*urls) as client:
        first = worker_of(client)["id"]
        assert client.delete(f"/workers/{first}").status_code == 202
        assert client.delete(f"/workers/{quote(urls[1], safe='')}").status_code == 202
        assert client.post("/remove_worker", params={"url": urls[2]}).json()["worker_urls"] == {}
        gone = client.delete(f"/workers/{first}")
        assert gone.status_code == 404
        assert gone.json()["error"]["code"] == "not_found"


@pytest.mark.parametrize("method", [b"GET", b"DELETE"])
@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("http://127.0.0.1:1/sub", "http%3A%2F%2F127.0.0.1%3A1%2Fsub"),
        ("http://127.0.0.1:1/sub", "http:%2f%2f127.0.0.1:1%2fsub"),
        ("http://127.0.0.1:1/sub", "http://127.0.0.1:1/sub"),
        ("http://127.0.0.1:1/", "http://127.0.0.1:1/"),
        ("http://127.0.0.1:1/a%2Fb", "http%3A%2F%2F127.0.0.1%3A1%2Fa%252Fb"),
        ("http://127.0.0.1:1/a%2Fb", "http://127.0.0.1:1/a%2Fb"),
        ("http://[::1]:1", "http%3A%2F%2F%5B%3A%3A1%5D%3A1"),
    ],
)
def test_worker_is_named_in_the_path_by_its_url_encoded_or_not(method: bytes, url: str, path: str) -> None:
    with router(url) as client, connection_to(client) as bare:
        bare.sendall(b"%s /workers/%s HTTP/1.1\r\nhost: r\r\n\r\n" % (method, path.encode()))
        status = bare.recv(4096).split(b" ")[1]
        assert status == (b"202" if method == b"DELETE" else b"200")
        assert client.get("/workers").json()["total"] == (0 if method == b"DELETE" else 1)


def test_worker_is_described_with_its_state_weights_load_and_last_probe() -> None:
    def script(client: socket.socket, request: bytes) -> bool:
        if request.startswith(b"POST "):
            released.wait(DEADLINE_S)
        client.sendall(reply(b'{"weight_version": "3"}'))
        return True

    released = threading.Event()
    with scripted_worker(script) as url, router(url, disable_health_check=False) as client:
        until(lambda: worker_of(client)["status"] == "healthy")
        call = threading.Thread(target=client.post, args=("/generate",))
        call.start()
        until(lambda: worker_of(client)["load"] == 1)
        told = worker_of(client)
        released.set()
        call.join(DEADLINE_S)
    probe = told.pop("last_probe")
    assert (probe["outcome"], probe["detail"], probe["latency_ms"] >= 0) == ("probe_ok", "", True)
    assert abs(datetime.fromisoformat(probe["at"]) - datetime.now(UTC)) < timedelta(minutes=1)
    del told["id"]
    assert told == {
        "url": url,
        "worker_type": "regular",
        "is_healthy": True,
        "is_routable": True,
        "status": "healthy",
        "weight_version": "3",
        "load": 1,
        "connection_mode": "http",
    }


def test_removed_worker_is_listed_no_more_and_finishes_its_calls() -> None:
    def script(client: socket.socket, request: bytes) -> bool:
        released.wait(DEADLINE_S)
        client.sendall(reply(b"done"))
        return True

    released = threading.Event()
    answers: list[str] = []
    with scripted_worker(script) as url, router(url) as client:
        call = threading.Thread(target=lambda: answers.append(client.post("/generate").text))
        call.start()
        until(lambda: worker_of(client)["load"] == 1)
        client.delete(f"/workers/{quote(url, safe='')}")
        assert client.get("/workers").json()["workers"] == []
        (draining,) = client.get("/workers", params={"draining": True}).json()["workers"]
        assert (draining["url"], draining["status"], draining["load"]) == (url, "draining", 1)
        assert client.post("/generate").status_code == 503
        released.set()
        call.join(DEADLINE_S)
        assert answers == ["done"]
        until(lambda: client.get("/workers?draining=true").json()["workers"] == [])


def test_fields_that_are_not_used_are_accepted_and_told() -> None:
    body = {
        "url": "http://127.0.0.1:1",
        "worker_type": "regular",
        "bootstrap_port": 8998,
        "model_id": "m",
        "priority": 50,
        "cost": 1.5,
        "labels": {"rack": "7"},
        "runtime": None,
        "api_key": "secret",
    }
    with router() as client:
        made = client.post("/workers", json=body)
        assert made.status_code == 202
        assert made.json()["fields_not_used"] == ["bootstrap_port", "cost", "labels", "model_id", "priority"]
        assert "secret" not in made.text + client.get("/workers").text


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, "url"),
        ({"url": "http://h:1", "worker_type": "prefill"}, "worker_type"),
        ({"url": "http://h:1", "api_key": "a\r\nb"}, "api_key"),
    ],
)
def test_worker_that_cannot_be_is_400_with_the_field(body: dict[str, str], named: str) -> None:
    with router() as client:
        answer = client.post("/workers", json=body)
        assert (answer.status_code, client.get("/workers").json()["total"]) == (400, 0)
        assert f"body.{named}: " in answer.json()["error"]["message"]


def test_head_of_add_worker_tells_that_it_is_there_and_adds_nothing() -> None:
    with router() as client:
        assert client.head("/add_worker?url=http://127.0.0.1:1").status_code == 200
        assert client.get("/list_workers").json() == {"urls": []}


def test_dead_worker_that_is_added_again_is_asked_again() -> None:
    with closed_port_url() as dead, router(dead, health_check_interval_secs=3600) as client:
        for _ in range(3):
            client.post("/generate")
        assert worker_of(client)["is_healthy"] is False
        told = client.post("/workers", json={"url": dead}).json()
        assert told["message"] == "Worker was known already"
        assert (worker_of(client)["is_healthy"], worker_of(client)["id"]) == (True, told["worker_id"])


@pytest.mark.parametrize(
    "url", ["10.0.0.1:30001", "https://h:1", "http://", "http://h:99999", "http://w0..svc:1"]
)
def test_worker_url_that_is_not_valid_is_refused_by_either_api(url: str) -> None:
    with router() as client:
        for answer in (
            client.post("/add_worker", params={"url": url}),
            client.post("/workers", json={"url": url}),
        ):
            assert answer.status_code == 400
            assert f"The worker URL {url!r} is not valid" in answer.json()["error"]["message"]
        assert client.get("/list_workers").json() == {"urls": []}


@pytest.mark.parametrize("path", ["/add_worker", "/remove_worker"])
def test_worker_that_is_not_named_is_400(path: str) -> None:
    with router() as client:
        for body in (b"", b"{", b"[]", b'{"url": 5}', b"\xff", b"[" * 100_000, b'{"url":' * 100_000):
            answer = client.post(path, content=body)
            assert answer.status_code == 400
            assert "?url=" in answer.json()["error"]["message"]
