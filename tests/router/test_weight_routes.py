"""What `/fleet/weights` takes and tells."""

from typing import Any

from tests.router.running import closed_port_url, router
from tests.simulator.workers import INSTANT, running_worker

NEW = {"model_path": "/m", "weight_version": "2"}


UNCLEAR: list[tuple[Any, str]] = [
    ({"model_path": "/m"}, "weight_version"),
    ({"weight_version": "2"}, "model_path"),
    ({**NEW, "weight_version": 2}, "weight_version"),
    ({**NEW, "weight_version": ""}, "weight_version"),
    ({**NEW, "mode": "softly"}, "mode"),
    ({**NEW, "keep_pause": True}, "keep_pause"),
    ([], "body"),
]
"""Bodies, and the member that is wrong in each."""


def test_update_that_is_not_clear_is_refused_before_anybody_is_paused() -> None:
    with running_worker(**INSTANT) as worker, router(str(worker.base_url)) as client:
        for body, named in UNCLEAR:
            answer = client.put("/fleet/weights", json=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_request")
            assert named in answer.json()["error"]["message"]
        assert worker.get("/model_info").json()["weight_version"] == "default"


def test_update_without_workers_or_for_an_unknown_one_is_told() -> None:
    with router() as client:
        assert client.put("/fleet/weights", json=NEW).status_code == 503
        assert client.put("/fleet/weights", json=NEW, params={"worker": "x"}).status_code == 404


def test_what_each_worker_serves_is_told() -> None:
    with (
        running_worker(**INSTANT) as worker,
        closed_port_url() as dead,
        router(str(worker.base_url), dead) as client,
    ):
        told = client.get("/fleet/weights").json()
        assert (told["newest_weight_version"], told["is_updating"], told["last_update"]) == (
            None,
            False,
            None,
        )
        served = {each["url"]: each for each in told["workers"].values()}
        assert served[str(worker.base_url)]["weight_version"] == "default"
        assert served[str(worker.base_url)]["error"] is None
        assert served[dead]["weight_version"] is None
        assert "took no connection" in served[dead]["error"]
        update = client.put("/fleet/weights", json={**NEW, "load_format": "auto"})
        told = client.get("/fleet/weights", params={"worker": str(worker.base_url)}).json()
        assert told["newest_weight_version"] == "2"
        assert told["last_update"] == update.json()
        (only,) = told["workers"].values()
        assert (only["weight_version"], only["model_path"]) == ("2", "/m")


def test_update_is_documented() -> None:
    with router() as client:
        operation = client.get("/openapi.json").json()["paths"]["/fleet/weights"]["put"]
        assert {"200", "207", "400", "404", "409", "502", "503"} <= set(operation["responses"])
