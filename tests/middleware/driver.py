"""Drives the radix-tree middleware in front of a fake worker."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import tokenizers

from espalier.calls import ByteStream, Call, Handler, JsonObject, Reply
from espalier.middleware import RadixTreeMiddleware
from espalier.middleware.trajectories import RetrieveRequest, Trajectory

from .fake_worker import FakeWorker, Sample
from .tokenizers_made import byte_level, saved

CAPTURES = Path(__file__).parent.parent / "captures"
USER, END = "<|im_start|>user\n", "<|im_end|>\n"
ASSISTANT = "<|im_start|>assistant\n"
IM_END = 2


def ids_of(text: str) -> list[int]:
    return byte_level().encode(text, add_special_tokens=False).ids


def says(*texts: str, stop: bool = False) -> Sample:
    """Return a sampler of these texts, in turn, each tokenised one character at a time: unlike any prompt."""
    turn = itertools.cycle(texts)

    def sample(prompt: list[int]) -> list[int]:
        ids = [each for char in next(turn) for each in ids_of(char)]
        return [*ids, IM_END] if stop else ids

    return sample


def call_of(
    body: JsonObject,
    *,
    method: str = "POST",
    path: str = "/generate",
    headers: list[tuple[bytes, bytes]] | None = None,
) -> Call:
    return Call(
        method=method,
        path=path,
        target=path.encode(),
        headers=headers or [],
        body=msgspec.json.encode(body),
        request_id="r",
    )


class Setup:
    """The middleware before a fake worker."""

    def __init__(
        self, folder: Path, sample: Sample, tokenizer: tokenizers.Tokenizer | None = None, **options: Any
    ) -> None:
        self.tokenizer = tokenizer or byte_level()
        self.worker = FakeWorker(self.tokenizer, sample, stop_ids=[IM_END])
        self.middleware = RadixTreeMiddleware(tokenizer_path=saved(self.tokenizer, folder), **options)

    async def raw(self, body: JsonObject, **options: Any) -> Reply:
        return await self.middleware(call_of(body, **options), self.worker)

    def send(self, **body: Any) -> JsonObject:
        return msgspec.json.decode(asyncio.run(self.read(body)), type=dict)

    async def read(self, body: JsonObject, **options: Any) -> bytes:
        return await (await self.raw(body, **options)).read()

    def retrieve(self, **body: Any) -> Trajectory:
        return asyncio.run(retrieve(self.middleware, **body))

    def stat(self, name: str) -> float:
        return self.middleware.stats()[f"radix_tree_{name}"]


async def retrieve(middleware: RadixTreeMiddleware, **body: Any) -> Trajectory:
    return await middleware.trajectories.retrieve(RetrieveRequest(**body))


class Body:
    """A streamed body that knows whether it was closed. An error among the chunks is raised in its turn."""

    def __init__(self, chunks: Sequence[bytes | BaseException | type[BaseException]]) -> None:
        self.chunks = chunks
        self.is_closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self.chunks:
            if not isinstance(chunk, bytes):
                raise chunk
            yield chunk

    async def aclose(self) -> None:
        self.is_closed = True


def capture(name: str) -> JsonObject:
    document = msgspec.json.decode((CAPTURES / f"{name}.json").read_bytes())
    answer: JsonObject = document["response"]["json"]
    return answer


def captured_generations() -> dict[str, tuple[JsonObject, JsonObject]]:
    """Return what a real worker answered to prompts by ids, whole and singly: name -> request, reply."""
    found = {}
    for path in CAPTURES.glob("[!I]*.json"):
        document = msgspec.json.decode(path.read_bytes())
        body = (document.get("request") or {}).get("body")
        reply = (document.get("response") or {}).get("json")
        if not isinstance(body, dict) or not isinstance(reply, dict):
            continue
        if "input_ids" in body and "meta_info" in reply:
            found[path.stem] = (body, reply)
    return found


def captured_stream(name: str) -> tuple[JsonObject, list[bytes]]:
    """Return the body of a streamed call to a real worker, and the events that it got, each as it came."""
    document = msgspec.json.decode((CAPTURES / f"{name}.json").read_bytes())
    lines = [line["line"].encode() for line in document["response"]["sse_lines"]]
    if lines[0] == b"\n":  # the end of an event that was not kept
        del lines[0]
    return document["request"]["body"], [b"".join(lines[at : at + 2]) for at in range(0, len(lines), 2)]


def streaming(chunks: Sequence[bytes | BaseException | type[BaseException]] | ByteStream) -> Handler:
    """Return a handler that answers with an event stream, in these chunks."""

    async def forward(call: Call) -> Reply:
        if call.path != "/generate":
            return Reply.of_json({"detail": "Not Found"}, 404)
        body = Body(chunks) if isinstance(chunks, Sequence) else chunks
        return Reply(status=200, headers=[(b"content-type", b"text/event-stream; charset=utf-8")], body=body)

    return forward


def answering(content: bytes) -> Handler:
    async def forward(call: Call) -> Reply:
        return Reply(status=200, headers=[], body=content)

    return forward


def masks(sizes: Iterable[int]) -> list[int]:
    """Return the mask of segments of these sizes: context, generation, context, and so on."""
    return list(chain(*([at % 2] * size for at, size in enumerate(sizes))))
