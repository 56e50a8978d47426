"""Control calls reach every worker, and each one's answer is told."""

import socket
import threading

from espalier.router.fleet import MAX_REPLY_BYTES
from tests.router.running import closed_port_url, router
from tests.router.scripted import answering, reply, scripted_worker


def test_reply_tells_how_each_worker_answered() -> None:
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


def test_status_tells_whether_all_some_or_no_workers_succeeded() -> None:
    with (
        scripted_worker(answering(reply(b""))) as alive,
        closed_port_url() as dead,
        router(alive) as client,
    ):
        answer = client.post("/flush_cache")
        assert answer.status_code == 200
        assert [result["body"] for result in answer.json()["results"].values()] == [None]
        client.post("/add_worker", params={"url": dead})
        assert client.post("/flush_cache").status_code == 207
        client.post("/remove_worker", params={"url": alive})
        refused = client.post("/flush_cache")
        assert refused.status_code == 502
        (result,) = refused.json()["results"].values()
        assert "took no connection" in result["body"]["error"]
        client.post("/remove_worker", params={"url": dead})
        assert client.post("/flush_cache").status_code == 503


def test_workers_are_asked_at_the_same_time() -> None:
    both_asked = threading.Barrier(2, timeout=20)

    def script(client: socket.socket, request: bytes) -> bool:
        both_asked.wait()
        return answering(reply())(client, request)

    with scripted_worker(script) as first, scripted_worker(script) as second, router(first, second) as client:
        assert client.post("/flush_cache").status_code == 200


def test_answer_that_is_too_long_is_not_kept() -> None:
    with (
        scripted_worker(answering(reply(b"x" * (MAX_REPLY_BYTES + 1)))) as talkative,
        scripted_worker(answering(reply(b"x" * MAX_REPLY_BYTES))) as terse,
        router(talkative, terse) as client,
    ):
        results = client.post("/flush_cache").json()["results"].values()
        told = {result["url"]: result for result in results}
        assert told[talkative]["status"] == 502
        assert f"longer than {MAX_REPLY_BYTES} bytes" in told[talkative]["body"]["error"]
        assert (told[terse]["status"], len(told[terse]["body"])) == (200, MAX_REPLY_BYTES)


def test_answer_that_is_no_json_is_told_as_text() -> None:
    for body in (b"fl\xc3\xbcshed", b"\xff", b"[" * 100_000):
        with scripted_worker(answering(reply(body))) as worker, router(worker) as client:
            (result,) = client.post("/flush_cache").json()["results"].values()
            assert result["body"] == body.decode("utf-8", "replace")
