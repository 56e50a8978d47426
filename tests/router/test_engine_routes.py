"""Calls to one worker by name, and SMG's way to ask all of them."""

import itertools
import json
import socket
import threading
from urllib.parse import quote

import httpx
import pytest

from espalier.errors import NotFound
from espalier.router.engine_gate import split_target
from tests.router.running import DEADLINE_S, closed_port_url, connection_to, router
from tests.router.scripted import answering, reply, scripted_worker

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def ids(client: httpx.Client) -> dict[str, str]:
    return {worker["url"]: worker["id"] for worker in client.get("/workers").json()["workers"]}


@pytest.mark.parametrize(
    ("target", "parts"),
    [
        (b"/workers/7f/engine/flush_cache?timeout=3", ("7f", b"/flush_cache?timeout=3")),
        (b"/workers/http%3A%2F%2Fh%3A1/engine/v1/loads", ("http://h:1", b"/v1/loads")),
        (b"/workers/http://h:1/engine/a%20b/engine/c", ("http://h:1", b"/a%20b/engine/c")),
        (b"/v1/rl/workers/7f/engine/x?y=/engine/z", ("7f", b"/x?y=/engine/z")),
        (b"/workers/7f/engine/", ("7f", b"/")),
    ],
)
def test_path_names_a_worker_and_a_path_of_its_own(target: bytes, parts: tuple[str, bytes]) -> None:
    assert split_target(target) == parts


def test_path_without_a_workers_part_is_not_found() -> None:
    with pytest.raises(NotFound):
        split_target(b"/workers/7f?x=/engine/y")


def test_call_reaches_the_named_worker_and_its_reply_comes_back_as_they_are() -> None:
    seen: list[bytes] = []

    def script(client: socket.socket, request: bytes) -> bool:
        if b" /get%20it" in request:
            seen.append(request)
        fields = b"x-twice: 1\r\nx-twice: 2\r\ncontent-encoding: odd\r\n"
        return answering(reply(b"\xff\x00", status="418 Teapot", fields=fields))(client, request)

    with (
        scripted_worker(answering(reply())) as other,
        scripted_worker(script) as named,
        router(other, named) as client,
    ):
        for prefix, name, method in itertools.product(
            ("", "/v1/rl"), (ids(client)[named], quote(named, safe="")), METHODS
        ):
            path = f"{prefix}/workers/{name}/engine/get%20it?worker=1&a=%2F"
            request = client.build_request(method, path, content=b"{ }", headers={"x-a": "1"})
            answer = client.send(request, stream=True)
            assert answer.status_code == 418
            assert b"".join(answer.iter_raw()) == b"\xff\x00"
            assert answer.headers.get_list("x-twice") == ["1", "2"]
            assert answer.headers.get_list("content-length") == ["2"]
            (told,) = seen
            seen.clear()
            assert told.startswith(f"{method} /get%20it?worker=1&a=%2F HTTP/1.1\r\n".encode())
            assert b"\r\nx-a: 1\r\n" in told
            assert told.endswith(b"\r\n\r\n{ }")


def test_stream_comes_as_the_worker_sends_it() -> None:
    first_was_read = threading.Event()

    def script(client: socket.socket, request: bytes) -> bool:
        if b" /generate " not in request:
            return answering(reply())(client, request)
        client.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n")
        assert first_was_read.wait(DEADLINE_S)
        client.sendall(b"3\r\ntwo\r\n0\r\n\r\n")
        return True

    with scripted_worker(script) as worker, router(worker) as client:
        path = f"/workers/{quote(worker, safe='')}/engine/generate"
        with client.stream("POST", path, json={}) as answer:
            chunks = answer.iter_raw()
            assert next(chunks) == b"one"
            first_was_read.set()
            assert b"".join(chunks) == b"two"


def test_worker_learns_that_the_client_has_hung_up() -> None:
    asked, gone = threading.Event(), threading.Event()

    def script(client: socket.socket, request: bytes) -> bool:
        if b" /generate " not in request:
            return answering(reply())(client, request)
        asked.set()
        if client.recv(1) == b"":
            gone.set()
        return False

    with scripted_worker(script) as worker, router(worker) as client:
        with connection_to(client) as bare:
            target = f"/workers/{quote(worker, safe='')}/engine/generate"
            bare.sendall(f"POST {target} HTTP/1.1\r\nhost: r\r\ncontent-length: 2\r\n\r\n{{}}".encode())
            assert asked.wait(DEADLINE_S)
        assert gone.wait(DEADLINE_S)


def test_dead_worker_is_asked_all_the_same_and_an_unknown_one_is_told() -> None:
    with closed_port_url() as dead, router(dead) as client:
        refused = client.get(f"/workers/{quote(dead, safe='')}/engine/ready")
        assert (refused.status_code, refused.json()["error"]["code"]) == (502, "upstream_error")
        unknown = client.get("/workers/nobody/engine/ready")
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "not_found")
        assert "'nobody'" in unknown.json()["error"]["message"]


def test_weights_that_one_worker_was_given_are_noted() -> None:
    def script(client: socket.socket, request: bytes) -> bool:
        told = b'{"weight_version": "5"}' if b"/model_info" in request else b'{"success": true}'
        return answering(reply(told))(client, request)

    with scripted_worker(script) as worker, router(worker) as client:
        body = {"new_version": "5"}
        path = f"/workers/{quote(worker, safe='')}/engine/update_weight_version"
        assert client.post(path, json=body).json() == {"success": True}
        assert client.get("/fleet/weights").json()["newest_weight_version"] == "5"


def test_workers_are_still_listed_shown_and_removed() -> None:
    with closed_port_url() as url, router(url) as client:
        name = quote(url, safe="")
        assert client.get(f"/workers/{name}").json()["url"] == url
        listed = client.get("/v1/rl/workers").json()
        assert (listed["total"], listed["workers"][0]["url"]) == (1, url)
        assert listed["workers"][0]["engine"] == "sglang"
        assert client.get(f"/v1/rl/workers/{name}").json() == listed["workers"][0]
        assert client.get("/v1/rl/workers/nobody").status_code == 404
        assert client.delete(f"/workers/{name}").status_code == 202


def test_smgs_fan_out_tells_successes_and_failures_apart() -> None:
    seen: list[bytes] = []

    def script(client: socket.socket, request: bytes) -> bool:
        if b" /pause" in request:
            seen.append(request)
        return answering(reply(b'{"status": "ok"}'))(client, request)

    with (
        scripted_worker(script) as good,
        scripted_worker(answering(reply(b'{"error": "no"}', status="400 Bad"))) as bad,
        router(good, bad) as client,
    ):
        known = ids(client)
        path = "/v1/rl/engine/pause%5Fgeneration?selector=engine=sglang&x=1"
        answer = client.post(path, json={"mode": "retract"})
        assert answer.status_code == 207
        told = answer.json()
        assert (told["total"], told["succeeded"], list(told["results"])) == (2, 1, [known[good]])
        result = told["results"][known[good]]
        assert (result["url"], result["status"], result["body"]) == (good, 200, {"status": "ok"})
        assert result["latency_ms"] >= 0
        assert told["failed"] == [
            {
                "worker_id": known[bad],
                "url": bad,
                "status": 400,
                "error": "refused_by_worker",
                "message": "no",
            }
        ]
        assert seen[0].startswith(b"POST /pause%5Fgeneration?x=1 HTTP/1.1\r\n")
        assert json.loads(seen[0].partition(b"\r\n\r\n")[2]) == {"mode": "retract"}
        chosen = client.get("/v1/rl/engine/ready", params={"selector": f"url={good}"})
        assert (chosen.status_code, chosen.json()["total"]) == (200, 1)
        assert client.get("/v1/rl/engine/ready", params={"selector": f"url={bad}"}).status_code == 502
        assert client.get("/v1/rl/engine/ready", params={"selector": "engine=vllm"}).status_code == 404
        assert client.get("/v1/rl/engine/ready", params={"selector": "x"}).status_code == 400
