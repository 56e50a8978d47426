"""What `/metrics` shows."""

import re
import socket
import threading
import time

import httpx
import pytest
from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from espalier.calls import Call, Reply
from espalier.router.data_plane import DataPlane
from espalier.router.ledger import Ledger
from espalier.router.metrics import RouterCollector, registry_of
from espalier.router.request_id import RequestIds
from espalier.router.tally import Tally
from espalier.router.workers import WorkerPool
from tests.router.running import DEADLINE_S, closed_port_url, router
from tests.router.scripted import answering, reply, scripted_worker


def test_replies_are_counted_by_worker_and_status() -> None:
    with (
        scripted_worker(answering(reply(status="429 Busy"))) as worker,
        router(worker) as client,
    ):
        client.post("/generate")
        shown = client.get("/metrics").text
    assert f'espalier_replies_total{{status="429",worker="{worker}"}} 1.0' in shown
    assert f'espalier_worker_state{{state="healthy",worker="{worker}"}} 1.0' in shown
    assert f'espalier_worker_state{{state="dead",worker="{worker}"}} 0.0' in shown
    assert f'espalier_worker_in_flight{{worker="{worker}"}} 0.0' in shown
    assert "espalier_clients_hung_up_total 0.0" in shown


def test_failures_are_counted_as_the_status_that_they_become() -> None:
    with (
        closed_port_url() as dead,
        scripted_worker(lambda *_: False) as rude,
        router(dead) as client,
    ):
        client.post("/generate")
        client.post("/remove_worker", params={"url": dead})
        client.post("/add_worker", params={"url": rude})
        client.post("/generate")
        shown = client.get("/metrics").text
    assert f'espalier_replies_total{{status="502",worker="{rude}"}} 1.0' in shown
    assert dead not in shown


def test_figures_of_middleware_are_shown_as_counters_and_gauges() -> None:
    with (
        scripted_worker(answering(reply())) as worker,
        router(worker, middleware=("tests.router.plugins:Shouting",)) as client,
    ):
        client.post("/generate")
        answer = client.get("/metrics")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    assert (families["espalier_shouted"].type, families["espalier_shouted"].samples[0].value) == (
        "counter",
        1,
    )
    assert (families["espalier_loudness"].type, families["espalier_loudness"].samples[0].value) == (
        "gauge",
        11,
    )
    assert answer.headers["content-type"].startswith("text/plain; version=")


def families_of(client: httpx.Client) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(client.get("/metrics").text)}


def value_of(family: Metric, name: str, **labels: str) -> float:
    (sample,) = [one for one in family.samples if one.name == name and labels.items() <= one.labels.items()]
    return sample.value


def test_requests_are_counted_by_path_method_and_status_with_times_and_bytes() -> None:
    with scripted_worker(answering(reply(b"x" * 100))) as worker, router(worker) as client:
        client.post("/generate", content=b"y" * 10)
        client.post("/generate", content=b"y" * 10)
        client.get("/made/up")
        client.get("/workers/nobody")
        families = families_of(client)
    requests = families["espalier_requests"]
    assert value_of(requests, "espalier_requests_total", path="/generate", method="POST", status="200") == 2
    assert value_of(requests, "espalier_requests_total", path="other", method="GET", status="200") == 1
    own = "/workers/{…}"
    assert value_of(requests, "espalier_requests_total", path=own, status="404") == 1
    assert (
        value_of(families["espalier_request_bytes"], "espalier_request_bytes_total", path="/generate") == 20
    )
    assert value_of(families["espalier_reply_bytes"], "espalier_reply_bytes_total", path="/generate") == 200
    for name in ("espalier_request_duration_seconds", "espalier_time_to_first_byte_seconds"):
        assert value_of(families[name], f"{name}_count", path="/generate") == 2
        assert value_of(families[name], f"{name}_bucket", path="/generate", le="+Inf") == 2
        assert 0 < value_of(families[name], f"{name}_sum", path="/generate") < 2 * DEADLINE_S


def test_first_byte_of_a_stream_is_timed_apart_from_its_last() -> None:
    go_on = threading.Event()

    def script(client: socket.socket, request: bytes) -> bool:
        client.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
        assert go_on.wait(DEADLINE_S)
        time.sleep(0.05)
        client.sendall(b"3\r\ndef\r\n0\r\n\r\n")
        return True

    with scripted_worker(script) as worker, router(worker) as client:
        with client.stream("POST", "/generate") as answer:
            chunks = answer.iter_raw()
            first = next(chunks)
            go_on.set()
            assert first + b"".join(chunks) == b"abcdef"
        families = families_of(client)
    first_byte, last_byte = (
        value_of(families[name], f"{name}_sum", path="/generate")
        for name in ("espalier_time_to_first_byte_seconds", "espalier_request_duration_seconds")
    )
    assert last_byte - first_byte >= 0.05
    assert value_of(families["espalier_reply_bytes"], "espalier_reply_bytes_total", path="/generate") == 6


def test_what_is_shown_keeps_the_rules_of_prometheus() -> None:
    """The rules of `promtool check metrics`."""
    with (
        scripted_worker(answering(reply())) as worker,
        router(worker, middleware=("tests.router.plugins:Shouting",)) as client,
    ):
        client.post("/generate")
        shown = client.get("/metrics").text
    helped = set(re.findall(r"(?m)^# HELP (\S+) \S", shown))
    kinds = dict(re.findall(r"(?m)^# TYPE (\S+) (\S+)$", shown))
    assert helped == set(kinds)
    assert len(re.findall(r"(?m)^# TYPE ", shown)) == len(kinds), "each family is told once"
    for name, kind in kinds.items():
        assert re.fullmatch(r"(espalier|process)_[a-z0-9_]+", name)
        assert name.endswith("_total") == (kind == "counter"), name
        assert not re.search(r"_(milliseconds|ms|minutes|kilobytes|mb|percent)(_|$)", name), name
    for family in text_string_to_metric_families(shown):
        for sample in family.samples:
            assert "quantile" not in sample.labels
            assert ("le" in sample.labels) == sample.name.endswith("_bucket")


def test_tally_is_shown_by_reason_and_cause() -> None:
    tally = Tally()
    tally.retries["queue_full"] += 2
    tally.aborts["client_hung_up"] += 1
    tally.refused["queue_timeout"] += 4
    tally.waiting = 3
    tally.queue_waits.add([0.2])
    pool = WorkerPool(failure_threshold=3)
    plane = DataPlane(nobody, max_body_bytes=1, request_ids=RequestIds(), on_end=Ledger().add)
    shown = generate_latest(registry_of(RouterCollector(pool, plane, [], Ledger(), tally))).decode()
    assert 'espalier_retries_total{reason="queue_full"} 2.0' in shown
    assert 'espalier_aborts_total{cause="client_hung_up"} 1.0' in shown
    assert 'espalier_refused_total{reason="queue_timeout"} 4.0' in shown
    assert "espalier_queue_length 3.0" in shown
    assert 'espalier_queue_wait_seconds_bucket{le="0.25"} 1.0' in shown


async def nobody(call: Call) -> Reply:
    raise AssertionError(call)


def test_middleware_whose_figures_fail_or_clash_costs_nobody_elses(caplog: pytest.LogCaptureFixture) -> None:
    with router(middleware=("tests.router.plugins:Miscounting", "tests.router.plugins:Clashing")) as client:
        shown = client.get("/metrics").text
    assert "espalier_in_flight 0.0" in shown
    assert "espalier_in_flight 99" not in shown
    assert "espalier_fine 1.0" in shown
    assert "not a name" not in shown
    assert "event=stats_failed middleware=Miscounting" in caplog.text
