"""Two requests kill a real worker; they kill the simulated one, too."""

from typing import Any

import httpx
import pytest

from espalier.simulator.app import create_app
from espalier.simulator.settings import WorkerSettings
from tests.serving import serve
from tests.simulator.shapes import capture
from tests.simulator.workers import BROKEN_OFF, INSTANT

KILLERS = ["err_empty_text_CRASH", "err_vocab_out_of_range_CRASH"]


def kill(body: dict[str, Any]) -> str | None:
    """Send `body` to a worker, show that it is dead for everyone, and return why."""
    app = create_app(WorkerSettings(**INSTANT))
    with serve(app) as url, httpx.Client(base_url=url) as client:
        with pytest.raises(BROKEN_OFF):
            client.post("/generate", json=body)
        for path in ("/health", "/ready"):
            with pytest.raises(BROKEN_OFF):
                client.get(path)
    return app.worker.death


@pytest.mark.parametrize("name", KILLERS)
def test_request_that_killed_the_real_worker_kills_this_one(name: str) -> None:
    assert kill(capture(name)["request"]["body"]) is not None


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"input_ids": [50, -1]}, "token id -1 is outside"),
        ({"input_ids": [[50], [1500]]}, "token id 1500 is outside"),
        ({"text": ["hi", ""]}, "without a token"),
        ({"input_ids": [1500], "stream": True}, "token id 1500 is outside"),
    ],
)
def test_death_has_a_reason(body: dict[str, Any], reason: str) -> None:
    assert reason in (kill(body) or "")


def test_last_id_of_the_vocabulary_is_harmless() -> None:
    with serve(create_app(WorkerSettings(**INSTANT))) as url, httpx.Client(base_url=url) as client:
        assert client.post("/generate", json={"input_ids": [1499]}).status_code == 200
        assert client.get("/health").status_code == 200
