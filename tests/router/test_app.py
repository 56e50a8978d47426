"""The router over real sockets, in front of scripted workers."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from espalier.errors import ConfigError, PluginError
from espalier.router.app import create_app
from espalier.router.settings import RouterSettings
from tests.router.scripted import answering, reply, scripted_worker
from tests.serving import serve


@contextlib.contextmanager
def router(*worker_urls: str, **settings: Any) -> Iterator[httpx.Client]:
    options: dict[str, Any] = {"middleware": ("none",), **settings}
    app = create_app(RouterSettings(worker_urls=worker_urls, **options))
    with serve(app) as url, httpx.Client(base_url=url, trust_env=False, timeout=20) as client:
        yield client


def closed_port_url() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_reply_reaches_the_client_as_the_worker_sent_it() -> None:
    body = b'{"text": "caf\\u00e9",  "x": 1e2}'
    fields = b"Content-Type: application/json\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nX-Worker: w\r\n"
    with (
        scripted_worker(answering(reply(body, status="418 I'm a teapot", fields=fields))) as worker,
        router(worker) as client,
    ):
        answer = client.post("/generate", content=b"{}")
    assert (answer.status_code, answer.content) == (418, body)
    assert answer.headers.get_list("set-cookie") == ["a=1", "b=2"]
    assert answer.headers["x-worker"] == "w"
    assert answer.headers.get_list("content-length") == [str(len(body))]


def test_request_reaches_the_worker_as_the_client_sent_it() -> None:
    seen: list[bytes] = []

    def script(client: socket.socket, request: bytes) -> bool:
        seen.append(request)
        client.sendall(reply())
        return True

    with scripted_worker(script) as worker, router(worker) as client:
        client.request(
            "PATCH", "/any/p%20th?a=1&a=2", content=b"\x00raw", headers=[("X-A", "1"), ("X-A", "2")]
        )
    head, _, body = seen[0].partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"PATCH /any/p%20th?a=1&a=2 HTTP/1.1"
    assert [line for line in lines if line.lower().startswith(b"x-a:")] == [b"x-a: 1", b"x-a: 2"]
    assert b"host: " + worker.removeprefix("http://").encode() in lines
    assert body == b"\x00raw"


def test_head_request_is_answered_with_the_length_and_no_body() -> None:
    def script(client: socket.socket, request: bytes) -> bool:
        assert request.startswith(b"HEAD ")
        client.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 42\r\n\r\n")
        return True

    with scripted_worker(script) as worker, router(worker) as client:
        answer = client.head("/model_info")
    assert (answer.status_code, answer.headers["content-length"], answer.content) == (200, "42", b"")


def test_calls_rotate_over_the_workers() -> None:
    with (
        scripted_worker(answering(reply(b"1"))) as first,
        scripted_worker(answering(reply(b"2"))) as second,
        router(first, second) as client,
    ):
        assert [client.post("/generate").text for _ in range(4)] == ["1", "2", "1", "2"]


def test_stream_passes_as_it_arrives_and_holds_the_lease_to_its_end() -> None:
    go_on = threading.Event()

    def script(client: socket.socket, request: bytes) -> bool:
        client.sendall(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            b"9\r\ndata: 1\n\n\r\n"
        )
        assert go_on.wait(20)
        client.sendall(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n")
        return True

    with scripted_worker(script) as worker, router(worker) as client:
        with client.stream("POST", "/generate") as answer:
            chunks = answer.iter_raw()
            assert next(chunks) == b"data: 1\n\n"
            assert client.get("/workers").json()["workers"][0]["load"] == 1
            go_on.set()
            assert b"".join(chunks) == b"data: 2\n\n"
        assert client.get("/workers").json()["workers"][0]["load"] == 0


def test_stream_that_the_worker_cuts_short_is_not_ended_well() -> None:
    def script(client: socket.socket, request: bytes) -> bool:
        client.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
        return False

    with scripted_worker(script) as worker, router(worker) as client:
        with pytest.raises(httpx.RemoteProtocolError), client.stream("POST", "/generate") as answer:
            list(answer.iter_raw())
        assert client.get("/workers").json()["workers"][0]["load"] == 0


def test_large_reply_arrives_whole() -> None:
    body = bytes(range(256)) * 50_000
    with scripted_worker(answering(reply(body))) as worker, router(worker) as client:
        assert client.get("/big").content == body


def test_client_that_hangs_up_frees_the_worker() -> None:
    gone = threading.Event()
    begun = threading.Event()

    def script(client: socket.socket, request: bytes) -> bool:
        begun.set()
        if client.recv(1) == b"":
            gone.set()
        return False

    with scripted_worker(script) as worker, router(worker) as client:
        host, port = str(client.base_url.host), client.base_url.port
        assert port is not None
        with socket.create_connection((host, port)) as impatient:
            impatient.sendall(b"POST /generate HTTP/1.1\r\nhost: r\r\ncontent-length: 2\r\n\r\n{}")
            assert begun.wait(20)
        assert gone.wait(5)
        assert client.get("/workers").json()["workers"][0]["load"] == 0
        assert "espalier_clients_hung_up_total 1.0" in client.get("/metrics").text


def test_idle_connection_that_the_worker_closed_is_replaced() -> None:
    connections: list[socket.socket] = []
    requests = 0

    def script(client: socket.socket, request: bytes) -> bool:
        nonlocal requests
        requests += 1
        if client in connections:
            return False
        connections.append(client)
        client.sendall(reply(b"%d" % len(connections)))
        return True

    with scripted_worker(script) as worker, router(worker) as client:
        assert client.get("/a").text == "1"
        assert client.get("/b").text == "2"
    assert requests == 3


def test_no_workers_is_503_with_retry_after() -> None:
    with router() as client:
        answer = client.post("/generate", json={"text": "hi"})
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
        assert answer.json()["error"]["code"] == "no_available_workers"
        assert client.get("/readiness").status_code == 503
        assert client.get("/health").status_code == 200


def test_dead_worker_is_502_and_after_three_refusals_503() -> None:
    with router(closed_port_url(), health_check_interval_secs=3600) as client:
        assert [client.post("/generate").status_code for _ in range(4)] == [502, 502, 502, 503]
        assert client.get("/workers").json()["workers"][0]["status"] == "dead"


def test_refused_connection_sends_the_call_to_the_next_worker() -> None:
    with (
        scripted_worker(answering(reply(b"alive"))) as alive,
        router(closed_port_url(), alive) as client,
    ):
        assert [client.post("/generate").text for _ in range(6)] == ["alive"] * 6


def test_dead_worker_revives_once_a_probe_finds_it() -> None:
    port = int(closed_port_url().rpartition(":")[2])
    with router(f"http://127.0.0.1:{port}", health_check_interval_secs=0.05) as client:
        for _ in range(3):
            client.post("/generate")
        probed = threading.Event()

        def accept() -> None:
            with socket.create_server(("127.0.0.1", port)) as listener:
                while not probed.is_set():
                    peer, _ = listener.accept()
                    with peer:
                        if peer.recv(65536).startswith(b"GET /ready "):
                            peer.sendall(reply(b""))
                            probed.set()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        assert probed.wait(20)
        thread.join(20)
        for _ in range(1000):
            if client.get("/workers").json()["workers"][0]["status"] != "dead":
                return
        raise AssertionError("the worker did not revive")


def test_worker_that_breaks_off_is_502_and_is_not_asked_again() -> None:
    requests = 0

    def script(client: socket.socket, request: bytes) -> bool:
        nonlocal requests
        requests += 1
        return False

    with scripted_worker(script) as worker, router(worker) as client:
        answer = client.post("/generate")
    assert answer.status_code == 502
    assert "closed the connection" in answer.json()["error"]["message"]
    assert requests == 1


def test_deadline_is_504() -> None:
    with (
        scripted_worker(lambda client, _: client.recv(1) != b"") as worker,
        router(worker, request_timeout_secs=0.1) as client,
    ):
        answer = client.post("/generate")
    assert answer.status_code == 504
    assert "0.1 s" in answer.json()["error"]["message"]


@pytest.mark.parametrize("is_chunked", [False, True])
def test_body_over_the_limit_is_413(is_chunked: bool) -> None:
    with (
        scripted_worker(answering(reply())) as worker,
        router(worker, max_payload_size=10) as client,
    ):
        body = iter([b"x" * 6, b"x" * 6]) if is_chunked else b"x" * 12
        answer = client.post("/generate", content=body)
        assert answer.status_code == 413
        assert "--max-payload-size" in answer.json()["error"]["message"]


def test_body_over_the_limit_is_413_for_the_routers_own_endpoints_too() -> None:
    with router(max_payload_size=10) as client:
        answer = client.post("/add_worker", content=iter([b"x" * 6, b"x" * 6]))
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "payload_too_large")


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
        first = client.get("/workers").json()["workers"][0]["id"]
        assert client.delete(f"/workers/{first}").status_code == 202
        assert client.delete(f"/workers/{quote(urls[1], safe='')}").status_code == 202
        assert client.post("/remove_worker", params={"url": urls[2]}).json()["worker_urls"] == {}
        gone = client.delete(f"/workers/{first}")
        assert gone.status_code == 404
        assert gone.json()["error"]["code"] == "not_found"


@pytest.mark.parametrize("url", ["10.0.0.1:30001", "https://h:1", "http://", "http://h:99999", "ftp://h"])
def test_worker_url_that_is_not_http_is_refused(url: str) -> None:
    with router() as client:
        assert client.post("/add_worker", params={"url": url}).status_code == 400
        assert "expected http://host:port" in client.post(
            "/workers", json={"url": url}
        ).text or "not valid" in (client.post("/workers", json={"url": url}).text)
    with pytest.raises(ConfigError, match="--worker-urls: The worker URL"):
        create_app(RouterSettings(worker_urls=(url,), middleware=("none",)))


def test_worker_that_is_not_named_is_400() -> None:
    with router() as client:
        for body in (b"", b"{", b"[]", b'{"url": 5}'):
            answer = client.post("/add_worker", content=body)
            assert answer.status_code == 400
            assert "?url=" in answer.json()["error"]["message"]


def test_control_call_reaches_every_worker_and_tells_how_each_answered() -> None:
    with (
        scripted_worker(answering(reply(b'{"ok":true}'))) as good,
        scripted_worker(answering(reply(b"no", status="400 Bad Request"))) as bad,
        router(good, bad) as client,
    ):
        answer = client.post("/pause_generation", json={"mode": "abort"})
        assert answer.status_code == 207
        told = answer.json()
        assert (told["total"], told["succeeded"]) == (2, 1)
        results = {result["url"]: result for result in told["results"].values()}
        assert (results[good]["status"], results[good]["body"]) == (200, {"ok": True})
        assert (results[bad]["status"], results[bad]["body"]) == (400, "no")
    with scripted_worker(answering(reply())) as one, router(one) as client:
        assert client.get("/flush_cache").status_code == 200
    with router(closed_port_url()) as client:
        assert client.post("/abort_request", json={"abort_all": True}).status_code == 502
    with router() as client:
        assert client.post("/abort_request", json={"abort_all": True}).status_code == 503


def test_metrics_count_replies_by_worker_and_status() -> None:
    with scripted_worker(answering(reply(status="429 Busy"))) as worker, router(worker) as client:
        client.post("/generate")
        shown = client.get("/metrics").text
    assert f'espalier_replies_total{{status="429",worker="{worker}"}} 1.0' in shown
    assert f'espalier_worker_state{{state="healthy",worker="{worker}"}} 1.0' in shown


def test_unknown_names_fail_with_the_known_ones() -> None:
    with pytest.raises(PluginError, match=r"unknown policy 'x': known are .*round_robin"):
        create_app(RouterSettings(policy="x"))
    with pytest.raises(PluginError, match=r"unknown middleware 'x': known are .*radix_tree"):
        create_app(RouterSettings(middleware=("x",)))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("radix_tree.max", "expected NAME.KEY=VALUE"),
        ("other.key=1", "'other' is not in use"),
        ("radix_tree.nonsense=1", "the middleware 'radix_tree' has no option 'nonsense': known are"),
    ],
)
def test_wrong_middleware_argument_is_told(argument: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_app(RouterSettings(middleware_arg=(argument,)))


def test_middleware_of_ones_own_sees_calls_and_its_failure_ends_only_its_call() -> None:
    with (
        scripted_worker(answering(reply(b"worker"))) as worker,
        router(worker, middleware=("tests.router.plugins:Shouting",)) as client,
    ):
        assert client.post("/generate", content=b"hi").text == "WORKER"
        failed = client.post("/generate", content=b"fail")
        assert (failed.status_code, failed.json()["error"]["code"]) == (500, "internal_error")
        assert client.get("/shouted").json() == {"shouted": 1}
        assert "espalier_shouted_total 1.0" in client.get("/metrics").text
