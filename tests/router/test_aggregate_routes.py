"""Endpoints that tell about the workers as if they were one."""

import json
import socket
from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

from tests.router.running import closed_port_url, router
from tests.router.scripted import Script, reply, scripted_worker
from tests.simulator.workers import INSTANT, running_worker

NOT_FOUND = reply(b'{"detail":"Not Found"}', status="404 Not Found")


def by_target(answers: Mapping[str, bytes]) -> Script:
    """Return a script that answers each target (path and query) with its reply, others with 404."""

    def script(client: socket.socket, request: bytes) -> bool:
        client.sendall(answers.get(request.split(b" ")[1].decode(), NOT_FOUND))
        return True

    return script


def json_reply(value: object) -> bytes:
    return reply(json.dumps(value).encode(), fields=b"content-type: application/json\r\n")


def test_loads_are_told_as_sglangs_router_does() -> None:
    modern = {"/v1/loads?include=core": json_reply({"loads": [{"num_total_tokens": 42}]})}
    legacy = {"/get_load": json_reply([{"dp_rank": 0, "num_tokens": 7}])}
    with (
        scripted_worker(by_target(modern)) as new,
        scripted_worker(by_target(legacy)) as old,
        closed_port_url() as dead,
        router(new, old, dead) as client,
    ):
        answer = client.get("/get_loads")
        assert answer.status_code == 200
        assert answer.json() == {
            "workers": [
                {"worker": new, "load": 42},
                {"worker": old, "load": 7},
                {"worker": dead, "load": -1},
            ]
        }


def test_loads_of_simulated_workers_are_joined() -> None:
    with (
        running_worker(**INSTANT) as first,
        running_worker(**INSTANT) as second,
        router(str(first.base_url), str(second.base_url)) as client,
    ):
        answer = client.get("/v1/loads", params={"include": "core"})
        assert answer.status_code == 200
        urls = [str(first.base_url), str(second.base_url)]
        assert [load["worker"] for load in answer.json()["loads"]] == urls
        assert all(load["num_running_reqs"] == 0 and "queues" not in load for load in answer.json()["loads"])
        one = client.get("/v1/loads", params={"worker": urls[1]}).json()
        assert [load["worker"] for load in one["loads"]] == urls[1:]
        assert client.get("/v1/loads", params={"include": "nonsense"}).status_code == 502
        refused = client.get("/v1/loads", params={"format": "prometheus"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "bad_request")


def test_metrics_of_workers_that_have_some_are_labelled() -> None:
    with (
        scripted_worker(by_target({"/metrics": reply(b"# TYPE x gauge\nx 3\n")})) as good,
        scripted_worker(by_target({})) as without,
        closed_port_url() as dead,
        router(good, without, dead) as client,
    ):
        answer = client.get("/engine_metrics")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/plain; version=")
        (family,) = text_string_to_metric_families(answer.text)
        assert [(sample.labels, sample.value) for sample in family.samples] == [({"worker_addr": good}, 3)]
        assert f"# worker_addr {without}: no metrics: Not Found\n" in answer.text
        assert f"# worker_addr {dead}: no metrics: " in answer.text


def test_models_of_all_workers_are_listed_once() -> None:
    one = {"id": "m", "object": "model"}
    other = {"id": "n", "object": "model"}
    with (
        scripted_worker(by_target({"/v1/models": json_reply({"data": [one]})})) as first,
        scripted_worker(by_target({"/v1/models": json_reply({"data": [one, other, 3]})})) as second,
        scripted_worker(by_target({})) as third,
        router(first, second, third) as client,
    ):
        assert client.get("/v1/models").json() == {"object": "list", "data": [one, other]}
        client.post("/remove_worker", params={"url": first})
        client.post("/remove_worker", params={"url": second})
        answer = client.get("/v1/models")
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_error")


def test_what_any_worker_can_tell_is_told_by_the_first_that_answers() -> None:
    for path in ("/model_info", "/get_model_info", "/server_info", "/get_server_info", "/health_generate"):
        said = reply(b'{"a":  1}', fields=b"x-from: worker\r\n")
        with (
            closed_port_url() as dead,
            scripted_worker(by_target({path: said, f"{path}?a=%20": said})) as alive,
            router(dead, alive) as client,
        ):
            answer = client.get(path)
            assert (answer.status_code, answer.text) == (200, '{"a":  1}')
            assert answer.headers["x-from"] == "worker"
            assert answer.headers.get_list("content-length") == ["9"]
            assert client.get(f"{path}?a=%20").status_code == 200
            client.post("/remove_worker", params={"url": alive})
            refused = client.get(path)
            assert (refused.status_code, refused.json()["error"]["code"]) == (502, "upstream_error")


def test_worker_that_says_no_is_not_passed_over() -> None:
    with scripted_worker(by_target({})) as first, router(first) as client:
        answer = client.get("/server_info")
        assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})


def test_without_workers_loads_and_metrics_are_empty_and_the_rest_is_503() -> None:
    with router() as client:
        assert client.get("/get_loads").json() == {"workers": []}
        assert client.get("/engine_metrics").text == ""
        for path in ("/v1/loads", "/v1/models", "/model_info", "/health_generate"):
            answer = client.get(path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_available_workers")
        for path in ("/health", "/liveness"):
            assert client.get(path).status_code == 200
