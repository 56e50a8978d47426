"""How the router tells that it lives."""

from tests.router.running import closed_port_url, router


def test_router_without_workers_lives() -> None:
    with router() as client:
        for path in ("/health", "/liveness"):
            told, head = client.get(path), client.head(path)
            assert (told.status_code, told.text) == (200, "OK")
            assert (head.status_code, head.text, head.headers["content-length"]) == (200, "", "2")


def test_router_is_ready_while_a_worker_may_be_asked() -> None:
    with closed_port_url() as dead, router(health_check_interval_secs=3600) as client:
        lacking = client.get("/readiness")
        assert lacking.status_code == 503
        assert int(lacking.headers["retry-after"]) > 0
        assert lacking.json() == {"status": "not ready", "reason": "no routable workers", "total_workers": 0}
        client.post("/add_worker", params={"url": dead})
        ready = client.get("/readiness")
        assert (ready.status_code, ready.json()["healthy_workers"], ready.json()["total_workers"]) == (
            200,
            1,
            1,
        )
        for _ in range(3):
            client.post("/generate")
        assert client.get("/readiness").json()["total_workers"] == 1
        assert client.head("/readiness").status_code == 503


def test_own_endpoints_are_documented() -> None:
    with router() as client:
        answer = client.get("/openapi.json")
        assert answer.status_code == 200
        operations = [
            operation["operationId"]
            for path in answer.json()["paths"].values()
            for operation in path.values()
        ]
        assert {"health", "liveness", "readiness", "metrics"} <= set(operations)
        assert len(operations) == len(set(operations))
        assert client.get("/docs").status_code == 200
