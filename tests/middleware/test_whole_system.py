"""Random agents before a real router and two simulated workers: everything that is given back, is true."""

import asyncio
import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from espalier.router.app import create_app
from espalier.router.settings import RouterSettings
from espalier.simulator.app import create_app as create_worker
from espalier.simulator.sampling import token_logprob
from espalier.simulator.settings import WorkerSettings
from tests import witness
from tests.serving import serve
from tests.thoroughness import DEPTH
from tests.witness import Witness

AGENTS = 24
TURNS = 8
UPDATES = 3
END = "<|im_end|>"
Json = dict[str, Any]

OBSERVATIONS = ["What next?", "42", "🙂 naïve 数字", "<|im_", "", "a\x00b", "x" * 300, "Go on.\r\n"]
STOPS = [None, None, ["."], ["the", "="], [" is"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A call as its client saw it."""

    rid: str
    session_id: str
    text: str | None
    reply: Json


@contextlib.contextmanager
def fleet(**tree: int) -> Iterator[tuple[str, Witness]]:
    """Run two workers behind a router with the radix tree, and a witness next to the workers."""
    slow: Json = {"decode_step_s": 0.002, "decode_step_per_request_s": 0.0, "prefill_tokens_per_s": 0.0}
    with contextlib.ExitStack() as running:
        urls = [
            running.enter_context(serve(create_worker(WorkerSettings(seed=seed, split_rate=0.3, **slow))))
            for seed in (1, 2)
        ]
        settings = RouterSettings(
            worker_urls=tuple(urls),
            middleware=("radix_tree", "tests.witness:Witness"),
            middleware_arg=tuple(f"radix_tree.{name}={value}" for name, value in tree.items()),
        )
        url = running.enter_context(serve(create_app(settings)))
        yield url, witness.latest[-1]


class Weights:
    """Gives the fleet new weights again and again while the agents talk, the running calls going on."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self._due = [AGENTS * TURNS * number // (UPDATES + 1) for number in range(1, UPDATES + 1)]

    async def after(self, calls: int) -> None:
        """Change them if `calls` calls are the number after which that is due."""
        if calls not in self._due:
            return
        version = f"v{self._due.index(calls) + 1}"
        for path, body in (
            ("/pause_generation", {"mode": "in_place"}),
            (
                "/update_weights_from_disk",
                {"model_path": "m", "weight_version": version, "flush_cache": False},
            ),
            ("/continue_generation", {}),
        ):
            reply = await self._client.post(path, json=body)
            assert reply.status_code == 200, reply.text


class Agent:
    """One that talks, goes back, retries, edits, and sometimes loses its patience."""

    def __init__(
        self, number: int, seed: str, client: httpx.AsyncClient, told: list[Told], weights: Weights
    ) -> None:
        self._chance = random.Random(seed)
        self._weights = weights
        self._client = client
        self._told = told
        self._session_id = f"session-{number}"
        self._question = f"What is {number // 4} + {number // 4 + 5}?"  # four siblings a prompt
        self._calls = 0

    async def run(self) -> None:
        start = f"<|im_start|>user\n{self._question}{END}\n<|im_start|>assistant\n"
        text, turns = start, [start]
        for _ in range(TURNS):
            told = await self._call(text)
            match self._chance.choice(["on", "on", "on", "spelled", "back", "retry", "edit", "cut"]):
                case "on":
                    text = self._next(text + told.reply["text"])
                case "spelled":
                    text = self._next(text + told.reply["text"] + END)
                case "back":
                    text = self._chance.choice(turns)
                case "edit":
                    reply = told.reply["text"]
                    at = self._chance.randrange(len(reply) + 1)
                    text = self._next(text + reply[:at] + "EDIT" + reply[at + 3 :])
                case "cut":
                    text = (text + told.reply["text"])[: self._chance.randrange(20, 400)]
            turns.append(text)
            if self._chance.random() < 0.2:
                await self._call_by_ids(told)

    def _next(self, text: str) -> str:
        return f"{text}\n<|im_start|>user\n{self._chance.choice(OBSERVATIONS)}{END}\n<|im_start|>assistant\n"

    def _params(self) -> Json:
        chance = self._chance
        params: Json = {
            "max_new_tokens": chance.choice([0, 1, 5, 30, 60]),
            "skip_special_tokens": chance.random() < 0.5,
            "no_stop_trim": chance.random() < 0.3,
            "stop": chance.choice(STOPS),
            "sampling_seed": chance.randrange(1000),
        }
        return {key: value for key, value in params.items() if value is not None}

    async def _call(self, text: str) -> Told:
        return await self._send({"text": text}, text)

    async def _call_by_ids(self, before: Told) -> None:
        found = await self._client.post("/retrieve_from_text", json={"rid": before.rid})
        if found.status_code == 200:  # else it was evicted
            ids = found.json()["tokens"]
            await self._send({"input_ids": ids[: self._chance.randrange(1, len(ids) + 1)]}, None)

    async def _send(self, prompt: Json, text: str | None) -> Told:
        self._calls += 1
        rid = f"{self._session_id}.{self._calls}."
        wants_logprobs = self._chance.random() < 0.5
        body = {**prompt, "rid": rid, "session_id": self._session_id, "sampling_params": self._params()}
        body |= {"return_logprob": True} if wants_logprobs else {}
        is_aborted = self._chance.random() < 0.15
        if is_aborted:
            body["sampling_params"] |= {"max_new_tokens": 2000, "ignore_eos": True, "stop": None}
        asked = asyncio.create_task(self._client.post("/generate", json=body))
        while is_aborted and not asked.done():
            await asyncio.wait([asked], timeout=0.02)
            await self._client.post("/abort_request", json={"rid": rid})
        reply = await asked
        assert reply.status_code == 200, reply.text
        said = reply.json()
        assert ("output_token_logprobs" in said["meta_info"]) == wants_logprobs
        told = Told(rid=rid, session_id=self._session_id, text=text, reply=said)
        self._told.append(told)
        await self._weights.after(len(self._told))
        return told


def check_exact(found: Json, seen: Witness, rid: str) -> None:
    """Check a trajectory against what a worker read and said, and each log-probability against the model."""
    tokens, mask, logprobs = found["tokens"], found["loss_mask"], found["rollout_logp"]
    said = seen.said[rid]
    start = len(seen.asked[rid]["input_ids"])
    assert tokens == seen.read_and_sampled(rid)
    assert len(tokens) == len(mask) == len(logprobs) == found["token_length"] == found["loss_mask_length"]
    assert mask[start:] == [1] * (len(tokens) - start)
    assert logprobs[start:] == seen.logprobs(rid)
    spans = [span for span in said["meta_info"]["weight_versions"] if span["end"] > span["start"]]
    told = [span for span in found["weight_versions"] if span["start"] >= start]
    assert [(span["version"], span["start"] - start, span["end"] - start) for span in told] == [
        (span["version"], span["start"], span["end"]) for span in spans
    ]
    check_logprobs(found)


def check_logprobs(found: Json) -> None:
    """Check that each sampled token has the model's own log-probability, and no other token has one."""
    versions: list[str | None] = [None] * len(found["tokens"])
    for span in found["weight_versions"]:
        versions[span["start"] : span["end"]] = [span["version"]] * (span["end"] - span["start"])
    tokens = found["tokens"]
    for at, (mask, logprob, version) in enumerate(
        zip(found["loss_mask"], found["rollout_logp"], versions, strict=True)
    ):
        assert (mask == 1) == (version is not None)
        expected = token_logprob(tokens[:at], tokens[at], version) if version is not None else 0.0
        assert logprob == expected


async def play(url: str, seen: Witness, seed: int) -> tuple[list[Told], int]:
    """Let the agents talk, then compare all that is still recorded; return the calls and how many were."""
    told: list[Told] = []
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as client:
        weights = Weights(client)
        agents = [Agent(number, f"{seed}.{number}", client, told, weights) for number in range(AGENTS)]
        await asyncio.gather(*(agent.run() for agent in agents))
        kept = 0
        for call in told:
            assert call.reply["output_ids"] == seen.said[call.rid]["output_ids"]
            assert call.reply["text"] == seen.said[call.rid]["text"]
            reply = await client.post("/retrieve_from_text", json={"rid": call.rid, "return_logp": True})
            if reply.status_code == 200:
                kept += 1
                check_exact(reply.json(), seen, call.rid)
            if call.text is not None:
                await check_by_text(client, call)
        stats = (await client.get("/radix_tree/stats")).json()
    assert stats["record_failures_total"] == 0
    assert stats["calls_recorded_total"] == len(told)
    return told, kept


async def check_by_text(client: httpx.AsyncClient, call: Told) -> None:
    """Check that what a text brings back is true, whichever of the trajectories of that text it is."""
    assert call.text is not None
    body = {"text": call.text + call.reply["text"], "session_id": call.session_id, "return_logp": True}
    reply = await client.post("/retrieve_from_text", json=body)
    assert reply.status_code == 200, reply.text
    check_logprobs(reply.json())


@pytest.mark.parametrize("seed", range(DEPTH))
def test_everything_given_back_is_what_the_workers_read_and_said(seed: int) -> None:
    with fleet() as (url, seen):
        told, kept = asyncio.run(play(url, seen, seed))
    assert len(told) >= AGENTS * TURNS
    assert kept == len(told)
    finishes = {call.reply["meta_info"]["finish_reason"]["type"] for call in told}
    assert finishes == {"stop", "length", "abort"}
    assert any(len(said["meta_info"]["weight_versions"]) > 1 for said in seen.said.values())


@pytest.mark.parametrize("seed", range(DEPTH))
def test_what_a_tiny_budget_keeps_is_as_true(seed: int) -> None:
    with fleet(max_cached_tokens=3000) as (url, seen):
        told, kept = asyncio.run(play(url, seen, 1000 + seed))
    assert 0 < kept < len(told)
