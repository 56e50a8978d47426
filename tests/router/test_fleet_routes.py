"""Every control path of SGLang's is the fleet's, and passes on what it was given."""

import json
import re
import socket
import threading

import pytest

from espalier.router.control_calls import CONTROL_CALLS
from tests.router.running import router
from tests.router.scripted import Script, answering, reply, scripted_worker


def recording(seen: list[bytes]) -> Script:
    """Return a script that keeps the control calls it gets; probes and questions are left out."""
    lock = threading.Lock()

    def script(client: socket.socket, request: bytes) -> bool:
        with lock:
            if request.split(b" ")[1].partition(b"?")[0].decode() in CONTROL_CALLS:
                seen.append(request)
        return answering(reply())(client, request)

    return script


def body_of(request: bytes) -> object:
    decoded: object = json.loads(request.partition(b"\r\n\r\n")[2])
    return decoded


def test_every_control_path_reaches_all_workers_as_it_came() -> None:
    seen: list[bytes] = []
    with (
        scripted_worker(recording(seen)) as first,
        scripted_worker(recording(seen)) as second,
        router(first, second) as client,
    ):
        for control in CONTROL_CALLS.values():
            for method in control.methods:
                target = f"{control.path}?timeout=3&a=%20"
                answer = client.request(method, target, content=b"{}", headers={"X-A": "1"})
                assert (answer.status_code, answer.json()["total"]) == (200, 2)
                for request in seen:
                    assert request.startswith(f"{method} {target} HTTP/1.1\r\n".encode())
                    assert b"\r\nx-a: 1\r\n" in request
                    assert request.endswith(b"\r\n\r\n{}")
                assert len(seen) == 2
                seen.clear()


@pytest.mark.parametrize(
    "path",
    [
        "/begin_weight_update",
        "/configure_logging",
        "/continue_generation",
        "/destroy_weights_update_group",
        "/end_weight_update",
        "/flush_cache",
        "/freeze_gc",
        "/init_weights_update_group",
        "/load_lora_adapter",
        "/load_lora_adapter_from_tensors",
        "/pause_generation",
        "/release_memory_occupation",
        "/resume_memory_occupation",
        "/set_internal_state",
        "/slow_down",
        "/start_profile",
        "/stop_profile",
        "/unload_lora_adapter",
        "/update_weight_version",
        "/update_weights_from_disk",
        "/update_weights_from_distributed",
        "/update_weights_from_tensor",
        "/weights_checker",
    ],
)
def test_what_changes_a_worker_for_all_its_callers_is_the_fleets(path: str) -> None:
    assert "POST" in CONTROL_CALLS[path].methods


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_cache_is_flushed_by_either_method(method: str) -> None:
    with scripted_worker(answering(reply())) as worker, router(worker) as client:
        assert client.request(method, "/flush_cache").json()["succeeded"] == 1


def test_workers_that_are_named_are_asked_alone_and_are_not_told_so() -> None:
    seen: list[bytes] = []
    others: list[bytes] = []
    with (
        scripted_worker(recording(seen)) as first,
        scripted_worker(recording(others)) as second,
        router(first, second) as client,
    ):
        ids = {worker["url"]: worker["id"] for worker in client.get("/workers").json()["workers"]}
        by_url = client.post("/flush_cache", params={"timeout": 3, "worker": first})
        by_id = client.post("/flush_cache", params={"worker": ids[first], "timeout": 3})
        for answer in (by_url, by_id):
            assert (answer.status_code, list(answer.json()["results"])) == (200, [ids[first]])
        for request in seen:
            assert request.startswith(b"POST /flush_cache?timeout=3 HTTP/1.1\r\n")
        assert others == []
        both = client.post("/flush_cache", params={"worker": [first, second]})
        assert both.json()["total"] == 2
        unknown = client.post("/flush_cache", params={"worker": [first, "http://elsewhere:1"]})
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "not_found")
        assert len(seen) == 3


def test_workers_can_be_sent_bodies_of_their_own() -> None:
    seen: dict[str, list[bytes]] = {"first": [], "second": []}
    with (
        scripted_worker(recording(seen["first"])) as first,
        scripted_worker(recording(seen["second"])) as second,
        router(first, second) as client,
    ):
        common = {"master_address": "10.0.0.9", "master_port": 29500, "world_size": 3}
        body = {**common, "workers": {first: {"rank_offset": 1}, second: {"rank_offset": 2}}}
        assert client.post("/init_weights_update_group", json=body).status_code == 200
    assert [body_of(request) for request in seen["first"]] == [{**common, "rank_offset": 1}]
    assert [body_of(request) for request in seen["second"]] == [{**common, "rank_offset": 2}]


def test_malformed_overlay_is_400_in_the_routers_shape() -> None:
    with router("http://127.0.0.1:1") as client:
        answer = client.post("/init_weights_update_group", json={"workers": [1]})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_request")


def test_control_calls_are_documented_with_their_replies() -> None:
    with router() as client:
        document = client.get("/openapi.json").json()
    paths = document["paths"]
    for control in CONTROL_CALLS.values():
        for method in control.methods:
            operation = paths[control.path][method.lower()]
            assert {"200", "207", "404", "502", "503"} <= set(operation["responses"])
            assert [each["name"] for each in operation["parameters"]] == ["worker"]
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert set(re.findall(r'"\$ref": "([^"]*)"', json.dumps(document))) <= known
