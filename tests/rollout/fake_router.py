"""A small router of our own: the calls that the rollout client makes, answered as the real ones answer.

It keeps what it was asked and what it sampled. Its tokens are words, not those of a tokenizer, so that a
client which re-tokenised the text would get others.
"""

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]

WEIGHT_VERSION = "7"
STOP_TOKEN = 2


@dataclass
class Generation:
    """What to sample for a request."""

    words: list[str]
    finish: str = "stop"

    @property
    def text(self) -> str:
        return "".join(self.words)


@dataclass
class Scripted:
    """An answer that is given in place of the usual one."""

    status: int
    body: Json | str = ""
    headers: dict[str, str] = field(default_factory=dict)


def token_of(word: str) -> int:
    """A word's id; the same for the same word, everywhere."""
    return 10 + int.from_bytes(hashlib.blake2b(word.encode(), digest_size=2).digest(), "big")


def prompt_tokens(text: str) -> list[int]:
    """A prompt's ids: one for each word, after a first one that the text does not show."""
    return [1] + [token_of(word) for word in text.split()]


def tokens_of(generation: Generation) -> list[int]:
    """The ids of what is sampled: one for each word, and one at the end unless it was cut off."""
    return [token_of(word) for word in generation.words if word] + [STOP_TOKEN] * (
        generation.finish == "stop"
    )


def log_prob(token: int, position: int) -> float:
    return -((token * 31 + position * 7) % 1000 + 1) / 256


def coin(*parts: object) -> int:
    return hashlib.blake2b(repr(parts).encode(), digest_size=1).digest()[0]


def default_generation(payload: Json) -> Generation:
    """Boxes a right or a wrong number, by chance, but always the same for the same seed and prompt."""
    params = payload["sampling_params"]
    luck = coin(payload.get("text") or payload.get("input_ids"), params.get("sampling_seed"))
    answer = "4" if luck % 2 else "5"
    return Generation(["The", " answer", " is", " very" * (luck % 3), " \\boxed{", answer, "}"])


class FakeRouter:
    """An ASGI application. Change its attributes to change what it does; read them to see what happened."""

    def __init__(self, generation: Callable[[Json], Generation] = default_generation) -> None:
        self.generation = generation
        self.holds: Callable[[Json], bool] = lambda _: False
        """Requests that are answered only when they are aborted."""
        self.encode: Callable[[Generation], list[int]] = tokens_of
        """The ids of what is sampled."""
        self.change_reply: Callable[[Json], Json] = lambda reply: reply
        self.change_record: Callable[[Json], Json] = lambda record: record
        self.scripted: dict[str, list[Scripted]] = {}
        """Answers by path, used up in order before the usual one."""
        self.workers = 2
        self.has_tree = True
        self.requests: list[Json] = []
        self.headers: list[dict[str, str]] = []
        self.aborted: list[str] = []
        self.aborts_of_all = 0
        self.aborts_running = 0
        self.most_aborts_running = 0
        self.finished = 0
        self._records: dict[str, Json] = {}
        self._held: dict[str, asyncio.Event] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._prompt_tokens = 0
        self._reused_tokens = 0

    async def __call__(
        self,
        scope: Json,
        receive: Callable[[], Awaitable[Json]],
        send: Callable[[Json], Awaitable[None]],
    ) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        answer = await self._answer(scope["path"], json.loads(body) if body else {}, headers)
        content = answer.body if isinstance(answer.body, str) else json.dumps(answer.body)
        fields = {"content-type": "application/json", **answer.headers}
        await send(
            {
                "type": "http.response.start",
                "status": answer.status,
                "headers": [(name.encode(), value.encode()) for name, value in fields.items()],
            }
        )
        await send({"type": "http.response.body", "body": content.encode()})

    def release(self) -> None:
        """Let every request go that is still held. May be called from any thread."""
        if self._loop is not None:
            for event in list(self._held.values()):
                self._loop.call_soon_threadsafe(event.set)

    async def _answer(self, path: str, payload: Json, headers: dict[str, str]) -> Scripted:
        if path == "/generate":
            self.requests.append(payload)
            self.headers.append(headers)
        if self.scripted.get(path):
            return self.scripted[path].pop(0)
        match path:
            case "/generate" if not self.workers:
                error = {"message": "There are no workers", "code": "no_available_workers"}
                return Scripted(503, {"error": error})
            case "/generate":
                return await self._generate(payload)
            case "/retrieve_from_text" if self.has_tree:
                return self._retrieve(payload)
            case "/radix_tree/stats" if self.has_tree:
                return Scripted(200, self._stats())
            case "/abort_request":
                return await self._abort(payload)
            case "/readiness":
                ready = {"status": "ready", "healthy_workers": self.workers, "total_workers": 2}
                return Scripted(200 if self.workers else 503, ready)
        return Scripted(404, {"detail": "Not Found"})

    async def _generate(self, payload: Json) -> Scripted:
        generation = self.generation(payload)
        if self.holds(payload):
            self._loop = asyncio.get_running_loop()
            event = self._held[payload["rid"]] = asyncio.Event()
            await event.wait()
            generation = Generation(generation.words[:2], finish="abort")
        prompt = payload.get("input_ids") or prompt_tokens(payload["text"])
        tokens = self.encode(generation)
        self._prompt_tokens += len(prompt)
        self._reused_tokens += len(prompt) - 1
        reply = self.change_reply(reply_of(payload["rid"], prompt, tokens, generation))
        log_probs = [entry[0] for entry in reply["meta_info"].get("output_token_logprobs") or []]
        self._records[payload["rid"]] = {
            "tokens": prompt + tokens,
            "response": generation.text,
            "loss_mask": [0] * len(prompt) + [1] * len(tokens),
            "token_length": len(prompt) + len(tokens),
            "loss_mask_length": len(prompt) + len(tokens),
            "rollout_logp": [0.0] * len(prompt) + log_probs,
        }
        self.finished += 1
        return Scripted(200, reply)

    async def _abort(self, payload: Json) -> Scripted:
        """As one tokenizer does: the id must be that of a running request, and then it is a prefix."""
        self.aborts_running += 1
        self.most_aborts_running = max(self.most_aborts_running, self.aborts_running)
        await asyncio.sleep(0.001)
        self.aborts_running -= 1
        ends_all = payload.get("abort_all", False)
        if ends_all:
            self.aborts_of_all += 1
        else:
            self.aborted.append(payload["rid"])
        for rid, event in self._held.items():
            if ends_all or (payload["rid"] in self._held and rid.startswith(payload["rid"])):
                event.set()
        return Scripted(200, {"total": 2, "succeeded": 2, "results": {}})

    def _retrieve(self, payload: Json) -> Scripted:
        if payload["rid"] not in self._records:
            return Scripted(404, {"error": {"message": f"no generation {payload['rid']!r}"}})
        return Scripted(200, self.change_record(dict(self._records[payload["rid"]])))

    def _stats(self) -> Json:
        return {
            "prompt_tokens_total": self._prompt_tokens,
            "reused_tokens_total": self._reused_tokens,
            "trajectories": len(self._records),
        }


def reply_of(rid: str, prompt: list[int], tokens: list[int], generation: Generation) -> Json:
    """A reply of the shape that SGLang 0.5.23 has."""
    reasons: Json = {
        "stop": {"type": "stop", "matched": STOP_TOKEN},
        "length": {"type": "length", "length": len(tokens)},
        "abort": {"type": "abort", "message": "Aborted", "status_code": None, "err_type": None},
    }
    return {
        "text": generation.text,
        "output_ids": tokens,
        "meta_info": {
            "id": rid,
            "finish_reason": reasons[generation.finish],
            "prompt_tokens": len(prompt),
            "weight_version": WEIGHT_VERSION,
            "num_retractions": 0,
            "input_token_logprobs": [],
            "output_token_logprobs": [
                [log_prob(token, len(prompt) + position), token, None]
                for position, token in enumerate(tokens)
            ],
            "output_token_logprobs_length": len(tokens),
            "reasoning_tokens": 0,
            "completion_tokens": len(tokens),
            "cached_tokens": len(prompt) - 1,
            "weight_versions": [{"version": WEIGHT_VERSION, "start": 0, "end": len(tokens)}],
            "cached_tokens_details": {"device": len(prompt) - 1, "host": 0},
            "dp_rank": None,
            "e2e_latency": 0.019,
            "response_sent_to_client_ts": 1795244581.4,
        },
    }


async def _lifespan(receive: Callable[[], Awaitable[Json]], send: Callable[[Json], Awaitable[None]]) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
