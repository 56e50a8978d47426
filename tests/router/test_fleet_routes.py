"""Every control path of SGLang's is the fleet's, and passes on what it was given."""

import socket

import pytest

from espalier.router.fleet import FLEET_PATHS
from tests.router.running import router
from tests.router.scripted import answering, reply, scripted_worker


def test_every_control_path_reaches_all_workers_as_it_came() -> None:
    seen: list[bytes] = []

    def script(client: socket.socket, request: bytes) -> bool:
        seen.append(request)
        return answering(reply())(client, request)

    with scripted_worker(script) as first, scripted_worker(script) as second, router(first, second) as client:
        for path in sorted(FLEET_PATHS):
            answer = client.post(f"{path}?timeout=3&a=%20", content=b"{}", headers={"X-A": "1"})
            assert (answer.status_code, answer.json()["total"]) == (200, 2)
            for request in seen:
                assert request.startswith(b"POST %s?timeout=3&a=%%20 HTTP/1.1\r\n" % path.encode())
                assert b"\r\nx-a: 1\r\n" in request
                assert request.endswith(b"\r\n\r\n{}")
            assert len(seen) == 2
            seen.clear()


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_cache_is_flushed_by_either_method(method: str) -> None:
    with scripted_worker(answering(reply())) as worker, router(worker) as client:
        assert client.request(method, "/flush_cache").json()["succeeded"] == 1
