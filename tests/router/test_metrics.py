"""What `/metrics` shows."""

from prometheus_client.parser import text_string_to_metric_families

from tests.router.running import closed_port_url, router
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
