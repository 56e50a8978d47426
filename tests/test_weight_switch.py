"""Real SGLang workers change their weights in the middle of generations, and every token says whose it is."""

import asyncio
import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from tests.engine.workers import EngineWorker
from tests.router.running import router

pytestmark = pytest.mark.engine

CHANGES = tuple(itertools.product(("abort", "retract", "in_place"), (1, 0)))
"""Mode, and the worker whose model all get."""

GENERATING = 8
"""Calls in flight while the weights change."""

OUTPUT_TOKENS = 96
FIRST_ID, VOCABULARY = 64, 640
"""Ids of plain tokens: each call begins with another one, so that none reads another's cached prefix."""

TOLERANCE_NATS = 1e-3
"""Reading a text gives the log-probabilities of sampling it but for rounding."""

Generated = dict[str, Any]


@contextlib.contextmanager
def original_weights_afterwards(workers: Sequence[EngineWorker]) -> Iterator[None]:
    """Put back what the fixture's other users expect, whatever happens."""
    try:
        yield
    finally:
        for worker in workers:
            post(worker.url, "/continue_generation", {})
            put_back = {"model_path": str(worker.model), "weight_version": "default"}
            post(worker.url, "/update_weights_from_disk", {**put_back, "abort_all_requests": True})


def post(url: str, path: str, body: Any) -> Any:
    reply = httpx.post(url + path, json=body, timeout=60, trust_env=False)
    assert reply.status_code == 200, reply.text
    return reply.json() if reply.content else None


def greedy(url: str, prompt: list[int]) -> list[int]:
    params = {"temperature": 0, "max_new_tokens": 12, "ignore_eos": True}
    ids: list[int] = post(url, "/generate", {"input_ids": prompt, "sampling_params": params})["output_ids"]
    return ids


@dataclass(slots=True)
class Course:
    """How far the changes have come, as those who generate see it."""

    served: str | None = None
    """The version that all workers serve; None while it changes."""
    is_over: bool = False
    numbers: Iterator[int] = field(default_factory=itertools.count)


async def generate_all_along(url: str, course: Course) -> list[Generated]:
    """Send one call after the other to the end; return each prompt with what came back."""
    replies: list[Generated] = []
    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
        while not course.is_over:
            number, served = next(course.numbers), course.served
            prompt = [FIRST_ID + number, FIRST_ID + number // 3, FIRST_ID + 1]
            params = {"temperature": 1, "max_new_tokens": OUTPUT_TOKENS, "ignore_eos": True}
            body = {"input_ids": prompt, "sampling_params": params, "return_logprob": True}
            reply = await client.post("/generate", json=body)
            assert reply.status_code == 200, reply.text
            replies.append({"prompt": prompt, "served_when_sent": served, **reply.json()})
    return replies


async def until_busy(client: httpx.AsyncClient, workers: int) -> None:
    """Return once every worker is sampling."""
    while True:
        loads = (await client.get("/v1/loads", params={"include": "core"})).json()["loads"]
        if sum(load["num_running_reqs"] > 1 for load in loads) == workers:
            return


async def switch_back_and_forth(
    url: str, workers: Sequence[EngineWorker], prompts: dict[tuple[str, int], list[int]]
) -> tuple[list[Generated], dict[tuple[str, int], list[list[int]]]]:
    """Change all workers' weights in every mode and back while calls run.

    Return what was generated, and what each worker said to a change's own prompt after it.
    """
    course = Course()
    said: dict[tuple[str, int], list[list[int]]] = {}
    async with (
        httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client,
        asyncio.TaskGroup() as group,
    ):
        generating = [group.create_task(generate_all_along(url, course)) for _ in range(GENERATING)]
        for mode, model in CHANGES:
            await until_busy(client, len(workers))
            body = {
                "model_path": str(workers[model].model),
                "weight_version": f"{mode}-{model}",
                "mode": mode,
            }
            course.served = None
            answer = await client.put("/fleet/weights", json=body)
            assert answer.status_code == 200, answer.text
            course.served = f"{mode}-{model}"
            said[mode, model] = await asyncio.gather(
                *(asyncio.to_thread(greedy, worker.url, prompts[mode, model]) for worker in workers)
            )
        course.is_over = True
    return [reply for task in generating for reply in task.result()], said


def check_versions(reply: Generated) -> None:
    """Check that the spans of versions cover the tokens, and that each version is a new one."""
    meta = reply["meta_info"]
    spans = meta["weight_versions"]
    assert [span["start"] for span in spans] == [0, *(span["end"] for span in spans[:-1])]
    assert spans[-1]["end"] == len(reply["output_ids"]) == meta["completion_tokens"]
    versions = [span["version"] for span in spans]
    assert len(set(versions)) == len(versions)


def read_logprobs(worker: EngineWorker, reply: Generated) -> list[float | None]:
    """Return the log-probabilities, in nats, that the worker's weights give the reply's tokens.

    None for the last id of the vocabulary: for it, SGLang tells that of id 0 where it reads.
    """
    ids = reply["prompt"] + reply["output_ids"]
    body = {
        "input_ids": ids,
        "sampling_params": {"max_new_tokens": 1},
        "return_logprob": True,
        "logprob_start_len": 0,
    }
    entries = post(worker.url, "/generate", body)["meta_info"]["input_token_logprobs"]
    assert len(entries) == len(ids)
    told = [
        value if told_id == token_id else None
        for (value, told_id, _), token_id in zip(entries, ids, strict=True)
    ]
    return told[len(reply["prompt"]) :]


def can_be_checked(reply: Generated, span: dict[str, Any]) -> bool:
    """Tell whether the tokens of a span must be those of the version's weights alone.

    Not so for a generation that went on in place: it has read with the old weights what came before, which
    can be its prompt alone. Then its reply names only the new version.
    """
    if not span["version"].startswith("in_place"):
        return True
    return bool(span["start"] == 0 and reply["served_when_sent"] == span["version"])


def check_logprobs(reply: Generated, workers: Sequence[EngineWorker]) -> None:
    """Check that the weights that a span names are those that sampled it."""
    sampled = [value for value, _, _ in reply["meta_info"]["output_token_logprobs"]]
    for span in reply["meta_info"]["weight_versions"]:
        if can_be_checked(reply, span):
            read = read_logprobs(workers[int(span["version"].rpartition("-")[2])], reply)
            of_span = list(zip(sampled, read, strict=True))[span["start"] : span["end"]]
            differences = [abs(one - other) for one, other in of_span if other is not None]
            assert max(differences, default=0) < TOLERANCE_NATS, span


def test_no_reply_mixes_weights_without_saying_so(engine_workers: tuple[EngineWorker, ...]) -> None:
    # A prompt of its own for every change: in place, what is cached of a prompt is of the weights before.
    prompts = {change: [FIRST_ID + VOCABULARY + n, FIRST_ID, FIRST_ID] for n, change in enumerate(CHANGES)}
    always = {
        change: [greedy(worker.url, prompt) for worker in engine_workers]
        for change, prompt in prompts.items()
    }
    assert all(outputs[0] != outputs[1] for outputs in always.values())
    with original_weights_afterwards(engine_workers), router(*(w.url for w in engine_workers)) as client:
        start = {"model_path": str(engine_workers[0].model), "weight_version": "start-0"}
        assert client.put("/fleet/weights", json=start).status_code == 200
        url = str(client.base_url)
        replies, said = asyncio.run(switch_back_and_forth(url, engine_workers, prompts))
    for (mode, model), outputs in said.items():
        assert outputs == [always[mode, model][model]] * len(engine_workers), (mode, model)
    assert len(replies) < VOCABULARY
    for reply in replies:
        check_versions(reply)
    ends = {reply["meta_info"]["finish_reason"]["type"] for reply in replies}
    assert ends == {"length", "abort"}
    mixed = [reply for reply in replies if len(reply["meta_info"]["weight_versions"]) > 1]
    modes_of_mixed = {
        span["version"].rpartition("-")[0]
        for reply in mixed
        for span in reply["meta_info"]["weight_versions"][1:]
    }
    assert modes_of_mixed == {"retract", "in_place"}
    plain = [reply for reply in replies if reply not in mixed]
    for reply in [*mixed, *plain[:: max(1, len(plain) // 40)]]:
        check_logprobs(reply, engine_workers)
