"""Simulated workers as processes of their own, so that they can be killed, and loads to kill them under."""

import asyncio
import contextlib
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from httpx_aiohttp import AiohttpTransport

from tests.router.running import until

FLAGS = (
    *("--port", "0", "--health-probe-s", "0", "--slice-s", "0.01"),
    *("--prefill-tokens-per-s", "0", "--decode-step-per-request-s", "0"),
)
ATTEMPT_DIGITS = 2
"""How many of a rid's last digits count the attempts of one call."""


@dataclass(frozen=True, slots=True)
class SimulatedWorker:
    """One worker process and a client that talks to it directly."""

    process: "subprocess.Popen[str]"
    client: httpx.Client

    @property
    def url(self) -> str:
        return str(self.client.base_url).rstrip("/")

    def counts(self) -> dict[str, dict[str, int]]:
        """Return what happened to each rid: received, finished, aborted, disconnected."""
        rids: dict[str, dict[str, int]] = self.client.get("/simulator/counters").json()["rids"]
        return rids

    def running(self) -> int:
        """Return how many generations are not at their end."""
        return sum(each["received"] - each["finished"] - each["aborted"] for each in self.counts().values())

    def misbehave(self, fault: str, **options: Any) -> None:
        """Set a fault; see `espalier.simulator.faults`."""
        self.client.post("/simulator/faults", json={"fault": fault, **options}).raise_for_status()


@contextlib.contextmanager
def workers(number: int, *flags: str, step_s: float = 0.01) -> Iterator[list[SimulatedWorker]]:
    """Run workers that take `step_s` a token, until the block ends."""
    command = [sys.executable, "-m", "espalier", "worker", *FLAGS, "--decode-step-s", str(step_s), *flags]
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            for _ in range(number)
        ]
        for process in processes:
            stack.callback(process.kill)
        started = []
        for process in processes:
            assert process.stdout is not None
            event, _, url = process.stdout.readline().strip().partition(" url=")
            assert event == "event=worker_ready"
            client = stack.enter_context(httpx.Client(base_url=url, timeout=20, trust_env=False))
            started.append(SimulatedWorker(process, client))
        yield started


def greedy(number: int, tokens: int) -> dict[str, Any]:
    """Return the body of a call whose reply is the same at every worker, and like that of no other number."""
    return {
        "text": f"Problem {number}: what is {number} + 1?",
        "rid": f"call-{number}",
        "sampling_params": {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True},
        "return_logprob": True,
    }


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client got: a status (0: the connection broke), and a body or what had come of it."""

    status: int
    body: bytes
    attempts: int

    def json(self) -> Any:
        return json.loads(self.body)


def load(url: str, bodies: Sequence[dict[str, Any]], *, after: Callable[[], None]) -> list[Answer]:
    """Send all bodies at once, run `after` in a thread meanwhile, and return every answer."""

    async def run() -> list[Answer]:
        transport = AiohttpTransport(trust_env=False, limits=httpx.Limits(max_connections=len(bodies)))
        async with httpx.AsyncClient(transport=transport, base_url=url, timeout=60) as client:
            calls = [asyncio.create_task(_ask(client, body)) for body in bodies]
            await asyncio.to_thread(after)
            return await asyncio.gather(*calls)

    return asyncio.run(run())


async def _ask(client: httpx.AsyncClient, body: dict[str, Any]) -> Answer:
    received = b""
    status, attempts = 0, 0
    try:
        async with client.stream("POST", "/generate", json=body) as reply:
            attempts = int(reply.headers["x-espalier-attempts"])
            async for chunk in reply.aiter_bytes():
                received += chunk
            status = reply.status_code
    except httpx.TransportError:
        status = 0
    return Answer(status, received, attempts)


def until_running(worker: SimulatedWorker, number: int) -> None:
    """Return once `number` generations run at a worker."""
    until(lambda: worker.running() >= number)


def attempts_by_call(fleet: Sequence[SimulatedWorker]) -> dict[str, list[dict[str, int]]]:
    """Return the counts of every attempt that the workers saw, by the call it was one of."""
    calls: dict[str, list[dict[str, int]]] = defaultdict(list)
    for worker in fleet:
        for rid, counts in worker.counts().items():
            calls[rid[:-ATTEMPT_DIGITS]].append(counts)
    return calls
