"""Streams and batches through a router, as it runs in production: recorded is what workers sampled."""

import contextlib
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from espalier.calls import ByteStream, Call, Handler, MiddlewareBase, Reply
from tests.engine.workers import EngineWorker
from tests.router.running import router, until
from tests.simulator.workers import BROKEN_OFF, INSTANT, SLOW, events_of, running_worker

LONG = {"max_new_tokens": 5000, "ignore_eos": True}
SHORT = {"max_new_tokens": 24, "temperature": 1.0}


class Wire(MiddlewareBase):
    """Stands next to the workers, and keeps what they were sent to generate from, and what they answered."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.answered: list[list[bytes]] = []
        latest.append(self)

    async def __call__(self, call: Call, forward: Handler) -> Reply:
        reply = await forward(call)
        if call.path == "/generate":
            self.asked.append(json.loads(call.body))
            self.answered.append([])
            if isinstance(reply.body, bytes):
                self.answered[-1].append(reply.body)
            else:
                reply.body = _Seen(reply.body, self.answered[-1])
        return reply

    def events(self) -> list[dict[str, Any]]:
        """Return the events of the latest stream, in order; one that was cut off is left out."""
        lines = b"".join(self.answered[-1]).split(b"\n")[:-1]
        return [json.loads(line[6:]) for line in lines if line.startswith(b"data: {")]

    def prompts(self) -> list[list[int]]:
        """Return the prompts of the latest call, as the worker read them."""
        ids: list[Any] = self.asked[-1]["input_ids"]
        return ids if isinstance(ids[0], list) else [ids]


class _Seen:
    def __init__(self, stream: ByteStream, seen: list[bytes]) -> None:
        self._stream = stream
        self._seen = seen

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            self._seen.append(chunk)
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


latest: list[Wire] = []


@contextlib.contextmanager
def recording_router(*urls: str) -> Iterator[tuple[httpx.Client, Wire]]:
    """Run a router with the tree; yields a client of it, and what went over the wire to its workers."""
    with router(*urls, middleware=("radix_tree", f"{__name__}:Wire")) as client:
        yield client, latest[-1]


@contextlib.contextmanager
def with_worker(**settings: Any) -> Iterator[tuple[httpx.Client, Wire]]:
    """Run a recording router before a simulated worker."""
    with (
        running_worker(**settings) as worker,
        recording_router(str(worker.base_url).rstrip("/")) as (client, wire),
    ):
        yield client, wire


def streamed(client: httpx.Client, body: dict[str, Any]) -> list[Any]:
    """Return the events of a stream, the final `[DONE]` as that text."""
    with client.stream("POST", "/generate", json={**body, "stream": True}) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        return events_of(reply.iter_lines())


def retrieved(client: httpx.Client, rid: str) -> dict[str, Any]:
    reply = client.post("/retrieve_from_text", json={"rid": rid, "return_logp": True})
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


def stat(client: httpx.Client, name: str) -> int:
    counted: int = client.get("/radix_tree/stats").json()[name]
    return counted


def joined(events: Sequence[dict[str, Any]], *, is_incremental: bool) -> dict[str, dict[str, Any]]:
    """Return all that a worker's events told, by the rid that they tell of."""
    told: dict[str, dict[str, Any]] = {}
    for event in events:
        known = told.get(event["meta_info"]["id"])
        if known is not None and is_incremental:
            event["text"] = known["text"] + event["text"]
            event["output_ids"] = known["output_ids"] + event["output_ids"]
            before = known["meta_info"]["output_token_logprobs"]
            event["meta_info"]["output_token_logprobs"] = before + event["meta_info"]["output_token_logprobs"]
        told[event["meta_info"]["id"]] = event
    return told


def check(client: httpx.Client, rid: str, prompt: Sequence[int], told: dict[str, Any]) -> None:
    """Check that what is recorded under `rid` is what a worker read and told, float by float."""
    found = retrieved(client, rid)
    sampled = told["output_ids"]
    assert found["tokens"] == [*prompt, *sampled]
    assert found["loss_mask"] == [0] * len(prompt) + [1] * len(sampled)
    logprobs = [each[0] for each in told["meta_info"]["output_token_logprobs"]]
    assert len(logprobs) == len(sampled)
    assert found["rollout_logp"][len(prompt) :] == logprobs


def check_all(client: httpx.Client, wire: Wire, *, is_incremental: bool, generations: int) -> None:
    """Check that every generation of the latest stream is recorded as its events told it."""
    told = joined(wire.events(), is_incremental=is_incremental)
    prompts = wire.prompts()
    assert len(told) == generations
    for rid, each in told.items():
        check(client, rid, prompts[each.get("index", 0) * len(prompts) // generations], each)


@pytest.mark.parametrize("is_incremental", [False, True])
@pytest.mark.parametrize(
    ("body", "generations"),
    [
        ({"text": "Question one?", "rid": "alone"}, 1),
        ({"text": ["Question two?", "And question three?"], "rid": "batch"}, 2),
        ({"text": "Question four?", "sampling_params": {**SHORT, "n": 3}}, 3),
        ({"text": ["Question five?", "And question six?"], "sampling_params": {**SHORT, "n": 2}}, 4),
    ],
)
def test_streams_are_recorded_as_the_worker_told_them(
    body: dict[str, Any], generations: int, is_incremental: bool
) -> None:
    with with_worker(**INSTANT, incremental_streaming_output=is_incremental) as (client, wire):
        events = streamed(client, {"sampling_params": SHORT, **body})
        assert events[-1] == "[DONE]"
        assert "logprobs" not in json.dumps(events)
        if isinstance(body.get("rid"), str):
            rids = {event["meta_info"]["id"] for event in events[:-1]}
            assert rids == ({"alone"} if generations == 1 else {"batch_0", "batch_1"})
        check_all(client, wire, is_incremental=is_incremental, generations=generations)
        assert stat(client, "record_failures_total") == stat(client, "streams_broken_off_total") == 0


@pytest.mark.parametrize("is_incremental", [False, True])
def test_next_turn_reads_the_tokens_that_were_streamed(is_incremental: bool) -> None:
    with with_worker(**INSTANT, incremental_streaming_output=is_incremental) as (client, wire):
        first = "<|im_start|>user\nWhat is 17 + 25?<|im_end|>\n<|im_start|>assistant\n"
        streamed(client, {"text": first, "rid": "first"})
        told = joined(wire.events(), is_incremental=is_incremental)["first"]
        known = [*wire.prompts()[0], *told["output_ids"]]
        second = (
            f"{first}{told['text']}<|im_end|>\n<|im_start|>user\nGo on.<|im_end|>\n<|im_start|>assistant\n"
        )
        streamed(client, {"text": second})
        assert wire.prompts()[0][: len(known)] == known


@pytest.mark.parametrize("is_incremental", [False, True])
def test_stream_that_was_aborted_is_recorded_with_what_was_sampled(is_incremental: bool) -> None:
    with (
        with_worker(**SLOW, incremental_streaming_output=is_incremental) as (client, wire),
        ThreadPoolExecutor() as pool,
    ):
        call = pool.submit(streamed, client, {"text": "hi", "sampling_params": LONG, "rid": "r"})
        until(lambda: bool(wire.answered) and len(wire.events()) > 3)
        client.post("/abort_request", json={"rid": "r"})
        assert call.result()[-2]["meta_info"]["finish_reason"]["type"] == "abort"
        check_all(client, wire, is_incremental=is_incremental, generations=1)
        assert stat(client, "streams_broken_off_total") == 0


@pytest.mark.parametrize("is_incremental", [False, True])
def test_client_that_hangs_up_frees_the_worker_and_leaves_what_was_seen(is_incremental: bool) -> None:
    with (
        running_worker(**SLOW, incremental_streaming_output=is_incremental) as worker,
        recording_router(str(worker.base_url).rstrip("/")) as (client, wire),
    ):
        asked = {"text": "hi", "sampling_params": LONG, "rid": "r", "stream": True}
        with client.stream("POST", "/generate", json=asked) as reply:
            lines = reply.iter_lines()
            for _ in range(9):
                next(lines)
        until(lambda: worker.get("/v1/loads").json()["loads"][0]["num_running_reqs"] == 0)
        until(lambda: stat(client, "streams_broken_off_total") == 1)
        check_all(client, wire, is_incremental=is_incremental, generations=1)
        # Nothing is held any more: the next call of the same prompt is the only one that needs it.
        assert stat(client, "trajectories") == 1


@pytest.mark.parametrize("is_incremental", [False, True])
def test_worker_that_dies_in_the_middle_of_a_stream_leaves_what_was_seen(is_incremental: bool) -> None:
    settings = {"fault": "die_mid_reply", "incremental_streaming_output": is_incremental}
    with with_worker(**INSTANT, **settings) as (client, wire):
        with pytest.raises(BROKEN_OFF):
            streamed(client, {"text": "hi", "sampling_params": LONG, "rid": "r"})
        until(lambda: stat(client, "streams_broken_off_total") == 1)
        check_all(client, wire, is_incremental=is_incremental, generations=1)


@pytest.mark.engine
def test_real_workers_streams_and_batches_are_recorded(engine_workers: tuple[EngineWorker, ...]) -> None:
    sampling = {"max_new_tokens": 24, "temperature": 1.0}
    with recording_router(engine_workers[0].url) as (client, wire):
        bodies: list[dict[str, Any]] = [
            {"text": "Tell me more.", "rid": "alone"},
            {"text": ["Tell me more.", "naïve café 数字 🙂"], "rid": "batch"},
            {"text": "def main():", "sampling_params": {**sampling, "n": 3}},
        ]
        for body, generations in zip(bodies, (1, 2, 3), strict=True):
            asked = {"sampling_params": sampling, **body}
            events = streamed(client, asked)
            assert events[-1] == "[DONE]"
            assert "logprobs" not in json.dumps(events)
            check_all(client, wire, is_incremental=False, generations=generations)
            reply = client.post("/generate", json={**asked, "return_logprob": True})
            told = reply.json() if isinstance(reply.json(), list) else [reply.json()]
            assert reply.content == wire.answered[-1][0]
            assert len(told) == generations
            prompts = wire.prompts()
            for index, each in enumerate(told):
                check(client, each["meta_info"]["id"], prompts[index * len(prompts) // generations], each)
        assert stat(client, "record_failures_total") == 0
        assert stat(client, "generations_recorded_total") == 2 * (1 + 2 + 3)


@pytest.mark.engine
def test_real_worker_s_greedy_stream_is_that_of_the_worker_asked_directly(
    engine_workers: tuple[EngineWorker, ...],
) -> None:
    asked = {"input_ids": [50, 51, 52, 53], "sampling_params": {"max_new_tokens": 24, "temperature": 0}}
    with recording_router(engine_workers[0].url) as (client, _):
        events = streamed(client, asked)
    with httpx.Client(base_url=engine_workers[0].url, trust_env=False, timeout=60) as direct:
        events_directly = streamed(direct, asked)
    told, told_directly = events[-2], events_directly[-2]
    assert (told["text"], told["output_ids"]) == (told_directly["text"], told_directly["output_ids"])
    assert told["meta_info"].keys() == told_directly["meta_info"].keys()
