"""Hundreds of agents on real SGLang workers: what the tree gives back is what the workers read and said."""

import asyncio
import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from espalier.router.app import create_app
from espalier.router.settings import RouterSettings
from tests import witness
from tests.engine.workers import EngineWorker
from tests.serving import serve
from tests.witness import Witness

pytestmark = pytest.mark.engine

PROMPTS = 25
SIBLINGS = 8
TURNS = 4
AT_A_TIME = 32
UPDATE_AFTER_CALLS = PROMPTS * SIBLINGS * TURNS // 2
TALKERS = 2
"""One for each worker: they sample without a pause while the weights change: agents' replies are short."""

TALK_AFTER_CALLS = UPDATE_AFTER_CALLS - 2 * AT_A_TIME
TALK_TOKENS = 1900
"""Almost all of the model's context."""

ABORT_EVERY = 9
SAMPLING = {"temperature": 1.0, "max_new_tokens": 20}
PREFILL_TOLERANCE_NATS = 1e-4
"""Prefill and decoding add the same numbers in another order."""

LAST_ID = 1023
"""The model's last token id: among a prompt's, SGLang tells it as 0, though it reads and scores it."""

VERSIONS = ("first", "second")
Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One call of an agent: its request id, the text it sent, and the text that came back."""

    rid: str
    text: str
    reply: str
    is_aborted: bool


async def post(client: httpx.AsyncClient, path: str, body: Json) -> Any:
    reply = await client.post(path, json=body)
    assert reply.status_code == 200, (path, reply.text)
    return reply.json() if reply.headers.get("content-type", "").startswith("application/json") else None


@contextlib.contextmanager
def router(workers: Sequence[EngineWorker]) -> Iterator[tuple[str, Witness]]:
    settings = RouterSettings(
        worker_urls=tuple(worker.url for worker in workers),
        middleware=("radix_tree", "tests.witness:Witness"),
    )
    with serve(create_app(settings)) as url:
        yield url, witness.latest[-1]


def client_of(url: str) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(base_url=url, trust_env=False, timeout=100, limits=limits)


async def load(workers: Sequence[EngineWorker], models: Sequence[Path], version: str) -> None:
    """Give each worker the weights of its model, under the name `version`."""
    for worker, model in zip(workers, models, strict=True):
        async with client_of(worker.url) as client:
            await post(client, "/continue_generation", {})
            body = {"model_path": str(model), "weight_version": version}
            assert (await post(client, "/update_weights_from_disk", body))["success"]


class Agents:
    """200 agents of 4 turns each, 32 at a time; half-way, while others talk, the fleet gets other weights."""

    def __init__(self, client: httpx.AsyncClient, other_model: Path) -> None:
        self._client = client
        self._other_model = other_model
        self._places = asyncio.Semaphore(AT_A_TIME)
        self._calls = itertools.count()
        self._is_nearly_half_way = asyncio.Event()
        self._is_half_way = asyncio.Event()
        self._are_new_weights = asyncio.Event()

    async def run(self) -> list[list[Turn]]:
        agents = (self._agent(prompt, sibling) for prompt in range(PROMPTS) for sibling in range(SIBLINGS))
        update = asyncio.create_task(self._change_weights())
        talks = [asyncio.create_task(self._talk(number)) for number in range(TALKERS)]
        trajectories = await asyncio.gather(*agents)
        await update
        talked = itertools.chain.from_iterable(await asyncio.gather(*talks))
        return [*trajectories, *([turn] for turn in talked)]

    async def _agent(self, prompt: int, sibling: int) -> list[Turn]:
        async with self._places:
            text = f"<|im_start|>user\nProblem {prompt}: add {prompt} and {2 * prompt}.<|im_end|>\n"
            text += "<|im_start|>assistant\n"
            turns: list[Turn] = []
            for number in range(TURNS):
                rid = f"{prompt}.{sibling}.{number}."
                turn = await self._turn(rid, f"{prompt}.{sibling}", text)
                turns.append(turn)
                text += f"{turn.reply}<|im_end|>\n<|im_start|>user\nGo on {number}.<|im_end|>\n"
                text += "<|im_start|>assistant\n"
            return turns

    async def _talk(self, talker: int) -> list[Turn]:
        """Have one long reply after the other, until there are new weights; return them, each by itself."""
        await self._is_nearly_half_way.wait()
        text = f"<|im_start|>user\nTalk {talker}.<|im_end|>\n<|im_start|>assistant\n"
        params = SAMPLING | {"max_new_tokens": TALK_TOKENS, "ignore_eos": True}
        said: list[Turn] = []
        while not self._are_new_weights.is_set():
            rid = f"talk.{talker}.{len(said)}."
            body = {"text": text, "sampling_params": params, "rid": rid, "session_id": rid}
            asked = asyncio.create_task(post(self._client, "/generate", body))
            changed = asyncio.create_task(self._are_new_weights.wait())
            await asyncio.wait([asked, changed], return_when=asyncio.FIRST_COMPLETED)
            changed.cancel()
            reply = await self._aborted(asked, rid)
            said.append(Turn(rid=rid, text=text, reply=reply["text"], is_aborted=True))
        return said

    async def _aborted(self, asked: "asyncio.Task[Json]", rid: str) -> Json:
        while not asked.done():
            await asyncio.wait([asked], timeout=0.05)
            await post(self._client, "/abort_request", {"rid": rid})
        return await asked

    async def _turn(self, rid: str, session_id: str, text: str) -> Turn:
        call = next(self._calls)
        body: Json = {"text": text, "sampling_params": SAMPLING, "rid": rid, "session_id": session_id}
        is_aborted = call % ABORT_EVERY == ABORT_EVERY - 1
        if is_aborted:
            body["sampling_params"] = SAMPLING | {"max_new_tokens": 300, "ignore_eos": True}
        if call == TALK_AFTER_CALLS:
            self._is_nearly_half_way.set()
        if call == UPDATE_AFTER_CALLS:
            self._is_half_way.set()
        asked = asyncio.create_task(post(self._client, "/generate", body))
        reply = await (self._aborted(asked, rid) if is_aborted else asked)
        return Turn(rid=rid, text=text, reply=reply["text"], is_aborted=is_aborted)

    async def _change_weights(self) -> None:
        await self._is_half_way.wait()
        body = {"model_path": str(self._other_model), "weight_version": VERSIONS[1]}
        for path, its in (
            ("/pause_generation", {"mode": "retract"}),
            ("/update_weights_from_disk", body),
            ("/continue_generation", {}),
        ):
            await post(self._client, path, its)
        self._are_new_weights.set()


def expected(turns: Sequence[Turn], seen: Witness) -> Json:
    """Return the trajectory as the workers tell it: tokens, mask, log-probabilities, versions of tokens."""
    tokens = seen.read_and_sampled(turns[-1].rid)
    mask, logprobs = [0] * len(tokens), [0.0] * len(tokens)
    versions: list[str | None] = [None] * len(tokens)
    for turn in turns:
        said = seen.said[turn.rid]
        start = len(seen.asked[turn.rid]["input_ids"])
        end = start + len(said["output_ids"])
        assert tokens[start:end] == said["output_ids"]
        mask[start:end] = [1] * (end - start)
        logprobs[start:end] = [entry[0] for entry in said["meta_info"]["output_token_logprobs"]]
        for span in said["meta_info"]["weight_versions"]:
            size = span["end"] - span["start"]
            versions[start + span["start"] : start + span["end"]] = [span["version"]] * size
    return {"tokens": tokens, "loss_mask": mask, "rollout_logp": logprobs, "versions": versions}


def versions_of(found: Json) -> list[str | None]:
    versions: list[str | None] = [None] * len(found["tokens"])
    for span in found["weight_versions"]:
        versions[span["start"] : span["end"]] = [span["version"]] * (span["end"] - span["start"])
    return versions


async def prefilled(worker: EngineWorker, tokens: Sequence[Sequence[int]]) -> list[list[float | None]]:
    """Return the log-probability of each token, as the worker computes it when it reads them all."""
    async with client_of(worker.url) as client:
        places = asyncio.Semaphore(16)

        async def one(ids: Sequence[int]) -> list[float | None]:
            body = {"input_ids": ids, "return_logprob": True, "logprob_start_len": 0}
            async with places:
                said = await post(client, "/generate", body | {"sampling_params": {"max_new_tokens": 1}})
            read = said["meta_info"]["input_token_logprobs"]
            assert [entry[1] for entry in read] == [0 if each == LAST_ID else each for each in ids]
            return [entry[0] for entry in read]

        return await asyncio.gather(*(one(ids) for ids in tokens))


async def differences(workers: Sequence[EngineWorker], found: Sequence[Json], version: str) -> list[float]:
    """Return how far the prefill of the weights `version` is from what was recorded of them, in nats."""
    half = len(found) // 2
    read = await asyncio.gather(
        *(
            prefilled(worker, [each["tokens"] for each in part])
            for worker, part in zip(workers, (found[:half], found[half:]), strict=True)
        )
    )
    return [
        abs(logprob - recorded) if logprob is not None else float("inf")
        for each, computed in zip(found, (*read[0], *read[1]), strict=True)
        for logprob, recorded, its in zip(computed, each["rollout_logp"], versions_of(each), strict=True)
        if its == version
    ]


@contextlib.contextmanager
def same_weights(workers: Sequence[EngineWorker]) -> Iterator[Path]:
    """Give all workers the first one's weights, and their own at the end; yields the other weights."""
    models = [worker.model for worker in workers]
    try:
        asyncio.run(load(workers, [models[0]] * len(workers), VERSIONS[0]))
        yield models[1]
    finally:
        asyncio.run(load(workers, models, "default"))


def test_every_trajectory_of_many_agents_is_what_the_workers_read_and_sampled(
    engine_workers: tuple[EngineWorker, ...],
) -> None:
    async def scenario(url: str, other_model: Path, seen: Witness) -> None:
        async with client_of(url) as client:
            trajectories = await Agents(client, other_model).run()
            bodies = [{"rid": turns[-1].rid, "return_logp": True} for turns in trajectories]
            found = [await post(client, "/retrieve_from_text", body) for body in bodies]
            stats = (await client.get("/radix_tree/stats")).json()
        agents = PROMPTS * SIBLINGS
        assert [len(turns) for turns in trajectories[:agents]] == [TURNS] * agents
        assert len(found) >= agents + TALKERS
        assert stats["calls_recorded_total"] == agents * TURNS + len(found) - agents
        for turns, each in zip(trajectories, found, strict=True):
            told = expected(turns, seen)
            assert each["tokens"] == told["tokens"]
            assert each["loss_mask"] == told["loss_mask"]
            assert each["rollout_logp"] == told["rollout_logp"]
            assert versions_of(each) == told["versions"]
        finishes = {
            (said["meta_info"]["finish_reason"]["type"], bool(said["output_ids"]))
            for said in seen.said.values()
        }
        assert ("abort", True) in finishes
        assert any(len(said["meta_info"]["weight_versions"]) == 2 for said in seen.said.values())
        for version, model in ((VERSIONS[1], None), (VERSIONS[0], engine_workers[0].model)):
            if model is not None:
                await load(engine_workers, [model] * len(engine_workers), version)
            apart = await differences(engine_workers, found, version)
            assert len(apart) > 1000
            assert max(apart) <= PREFILL_TOLERANCE_NATS

    with same_weights(engine_workers) as other_model, router(engine_workers) as (url, seen):
        asyncio.run(scenario(url, other_model, seen))
