from collections.abc import Iterator

import httpx
import pytest

from espalier.simulator.counters import Counters
from tests.simulator.workers import INSTANT, counts, generate, running_worker


@pytest.fixture(scope="module")
def worker() -> Iterator[httpx.Client]:
    with running_worker(**INSTANT) as client:
        yield client


def test_counters_count_each_rid(worker: httpx.Client) -> None:
    for _ in range(2):
        generate(worker, rid="twice", input_ids=[50])
    assert counts(worker, "twice") == {"received": 2, "finished": 2, "aborted": 0, "disconnected": 0}
    assert counts(worker, "never") is None


def test_counters_forget_the_oldest_rid_but_not_the_total() -> None:
    counters = Counters(max_rids=2)
    for rid in ("a", "b", "c"):
        counters.receive(rid)
    assert list(counters.by_rid) == ["b", "c"]
    assert counters.totals.received == 3


def test_loads_can_be_asked_in_part(worker: httpx.Client) -> None:
    load = worker.get("/v1/loads", params={"include": "core,queues"}).json()["loads"][0]
    assert "queues" in load
    assert "memory" not in load
    refused = worker.get("/v1/loads", params={"include": "weather"})
    assert refused.status_code == 400
    assert "weather" in refused.json()["error"]["message"]


def test_flush_waits_for_idle_as_long_as_it_is_told(worker: httpx.Client) -> None:
    assert worker.post("/flush_cache", params={"timeout": 5}).status_code == 200
    assert worker.post("/flush_cache", params={"timeout": "soon"}).status_code == 400


def test_head_of_the_root_has_no_body(worker: httpx.Client) -> None:
    reply = worker.head("/")
    assert (reply.status_code, reply.content) == (200, b"")


def test_conversation_is_tokenised_with_its_template(worker: httpx.Client) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}]}
    tokens = worker.post("/tokenize", json=body).json()["tokens"]
    text = worker.post("/detokenize", json={"tokens": tokens, "skip_special_tokens": False}).json()["text"]
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_detokenize_takes_several_lists_and_names_unknown_ids(worker: httpx.Client) -> None:
    assert worker.post("/detokenize", json={"tokens": [[50], [51]]}).json() == {"text": ["P", "Q"]}
    refused = worker.post("/detokenize", json={"tokens": [9999]})
    assert refused.status_code == 400
    assert "1499" in refused.json()["error"]


def test_websocket_is_refused() -> None:
    import asyncio

    from espalier.simulator.app import create_app
    from espalier.simulator.settings import WorkerSettings

    async def call() -> None:
        async def nothing(*_: object) -> dict[str, object]:
            return {}

        with pytest.raises(RuntimeError, match="HTTP only"):
            await create_app(WorkerSettings())({"type": "websocket"}, nothing, nothing)  # type: ignore[arg-type]

    asyncio.run(call())
