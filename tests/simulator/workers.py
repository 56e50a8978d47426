"""Simulated workers for these tests."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx

from espalier.simulator.app import create_app
from espalier.simulator.settings import WorkerSettings
from tests.serving import serve

INSTANT: dict[str, Any] = {
    "prefill_tokens_per_s": 0.0,
    "decode_step_s": 0.0,
    "decode_step_per_request_s": 0.0,
    "health_probe_s": 0.0,
}
"""Settings of a worker that answers at once."""

SLOW = INSTANT | {"decode_step_s": 0.005, "slice_s": 0.01}
"""Settings of a worker that samples 200 tokens a second."""


BROKEN_OFF = (httpx.NetworkError, httpx.RemoteProtocolError)
"""What a client raises when a connection ends before the reply does."""


@contextlib.contextmanager
def running_worker(**settings: Any) -> Iterator[httpx.Client]:
    """Serve a worker; yields a client of it."""
    app = create_app(WorkerSettings(**settings))
    with serve(app, timeout_keep_alive=5) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client


def generate(client: httpx.Client, **body: Any) -> Any:
    """Return the JSON reply of a call that must succeed."""
    reply = client.post("/generate", json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def events_of(lines: Iterator[str]) -> list[Any]:
    """Return the events of a stream, the final `[DONE]` as that text."""
    events: list[Any] = []
    for line in lines:
        if line.startswith("data: "):
            data = line.removeprefix("data: ").strip()
            events.append(data if data == "[DONE]" else json.loads(data))
    return events


def stream(client: httpx.Client, **body: Any) -> list[Any]:
    """Return the events of a streaming call."""
    with client.stream("POST", "/generate", json={**body, "stream": True}) as reply:
        assert reply.status_code == 200
        return events_of(reply.iter_lines())


def counts(client: httpx.Client, rid: str) -> dict[str, int] | None:
    found: dict[str, int] | None = client.get("/simulator/counters", params={"rid": rid}).json()["rids"][rid]
    return found


def eventually(condition: Callable[[], bool], *, within_s: float = 10) -> None:
    """Ask until `condition` holds."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.005)
