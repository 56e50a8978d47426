"""Both worker APIs, over HTTP."""

from urllib.parse import quote

import pytest

from tests.router.running import closed_port_url, router, worker_of


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
