"""What recording adds to a reply: CPU time of the radix-tree middleware per `/generate` call.

usage: python benchmarks/record_micro.py [--tokens 1024] [--calls 2000] [--siblings 8] [--without-logprobs]
                                          [--stream all|news]

Calls the middleware in this process with a handler that returns a ready reply, so that nothing but the
middleware (and the JSON of the call itself) is timed. The garbage collector is set as the server sets it.
"""

import argparse
import asyncio
import gc
import itertools
import random
import tempfile
import time
import tracemalloc
from array import array
from collections.abc import AsyncIterator, Iterable
from functools import partial
from pathlib import Path

import msgspec
import tokenizers

from espalier.calls import Call, Handler, Reply
from espalier.middleware import RadixTreeMiddleware

PROMPT_TOKENS = 128
VOCABULARY_SIZE = 150_000
CHARS_PER_TOKEN = 4
RUNS = 3


def make_reply(rng: random.Random, tokens: int) -> bytes:
    """Return a reply as a worker writes it, of `tokens` tokens with log-probabilities, without its id."""
    ids = [rng.randrange(VOCABULARY_SIZE) for _ in range(tokens)]
    logprobs = array("f", [-rng.expovariate(1.0) for _ in ids])
    triples = [[logprob, each, None] for logprob, each in zip(logprobs, ids, strict=True)]
    meta = {
        "id": "RID",
        "finish_reason": {"type": "length", "length": tokens},
        "prompt_tokens": PROMPT_TOKENS,
        "weight_version": "default",
        "input_token_logprobs": [],
        "output_token_logprobs": triples,
        "output_token_logprobs_length": tokens,
        "completion_tokens": tokens,
        "weight_versions": [{"version": "default", "start": 0, "end": tokens}],
    }
    letters = "abcdefghijklmnopqrstuvwxyz "
    text = "".join(rng.choices(letters, k=tokens * CHARS_PER_TOKEN))
    return msgspec.json.encode({"text": text, "output_ids": ids, "meta_info": meta})


def make_stream(reply: bytes, *, tells_all: bool) -> list[bytes]:
    """Return the events of a stream that ends in `reply`, one a token, as a worker writes them."""
    whole = msgspec.json.decode(reply)
    text, ids, meta = whole["text"], whole["output_ids"], whole["meta_info"]
    triples = meta["output_token_logprobs"]
    events = []
    for at in range(1, len(ids) + 1):
        start = 0 if tells_all else at - 1
        told = {
            **meta,
            "output_token_logprobs": triples[start:at],
            "output_token_logprobs_length": at,
            "completion_tokens": at,
        }
        if at < len(ids):
            told |= {"finish_reason": None}
            del told["weight_versions"]
        shown = text[start * CHARS_PER_TOKEN : at * CHARS_PER_TOKEN]
        body = {"text": shown, "output_ids": ids[start:at], "meta_info": told}
        events.append(b"data: %b\n\n" % msgspec.json.encode(body))
    return [*events, b"data: [DONE]\n\n"]


class Stream:
    """Chunks that are all there already."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self.chunks = chunks

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self.chunks:
            yield chunk

    async def aclose(self) -> None:
        """Do nothing."""


def make_tokenizer(folder: Path) -> str:
    """Write a tokenizer of one word an id, and return its path."""
    words = {f"w{at}": at for at in range(VOCABULARY_SIZE)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return str(path)


async def consume(reply: Reply) -> None:
    """Take all of a reply, as a server does that hands it on."""
    if not isinstance(reply.body, bytes):
        async for _ in reply.body:
            pass
        await reply.aclose()


async def record(middleware: RadixTreeMiddleware, calls: list[Call], forward: Handler) -> float:
    """Send all calls; returns CPU seconds. Fails where one of them was not recorded."""
    start = time.process_time()
    for call in calls:
        await consume(await middleware(call, forward))
    seconds = time.process_time() - start
    assert middleware.stats()["radix_tree_calls_recorded_total"] == len(calls)
    return seconds


def make_calls(
    count: int, siblings: int, *, wants_logprobs: bool, seed: int, is_streamed: bool = False
) -> list[Call]:
    """Return calls by token ids; every `siblings` of them share a prompt."""
    rng = random.Random(seed)
    calls = []
    for at in range(count):
        if at % siblings == 0:
            ids = [rng.randrange(VOCABULARY_SIZE) for _ in range(PROMPT_TOKENS)]
        asked = {"input_ids": ids, "return_logprob": wants_logprobs, "stream": is_streamed}
        body = msgspec.json.encode(asked)
        calls.append(
            Call(
                method="POST",
                path="/generate",
                target=b"/generate",
                headers=[],
                body=body,
                request_id=str(at),
            )
        )
    return calls


def main() -> None:
    """Print µs a reply and bytes a stored token."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--siblings", type=int, default=8)
    parser.add_argument("--without-logprobs", action="store_true", help="the client did not ask for them")
    parser.add_argument("--stream", choices=["all", "news"], help="events tell all again, or what is new")
    options = parser.parse_args()

    rng = random.Random(0)
    bodies = [make_reply(rng, options.tokens) for _ in range(64)]
    streams = [make_stream(each, tells_all=options.stream == "all") for each in bodies[:2] if options.stream]
    turn = itertools.count()

    async def forward(call: Call) -> Reply:
        if call.path != "/generate":
            return Reply(status=404, headers=[], body=b"{}")
        at = next(turn)
        if streams:
            rid = b'"rid-%d"' % at
            chunks = [chunk.replace(b'"RID"', rid, 1) for chunk in streams[at % 2]]
            return Reply(status=200, headers=[(b"content-type", b"text/event-stream")], body=Stream(chunks))
        return Reply(status=200, headers=[], body=bodies[at % 64].replace(b'"RID"', b'"rid-%d"' % at, 1))

    async def forwarding_alone(calls: list[Call]) -> float:
        start = time.process_time()
        for call in calls:
            call.json()
            await consume(await forward(call))
        return time.process_time() - start

    with tempfile.TemporaryDirectory() as folder:
        path = make_tokenizer(Path(folder))
        middlewares = [RadixTreeMiddleware(tokenizer_path=path) for _ in range(RUNS + 1)]
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
    best = float("inf")
    for run in range(RUNS):
        make = partial(
            make_calls,
            options.calls,
            options.siblings,
            wants_logprobs=not options.without_logprobs,
            is_streamed=bool(options.stream),
        )
        alone = asyncio.run(forwarding_alone(make(seed=run)))
        calls = make(seed=run)
        recorded = asyncio.run(record(middlewares[run], calls, forward))
        best = min(best, (recorded - alone) / options.calls)
    print(f"recording: {best * 1e6:.0f} us a reply of {options.tokens} tokens")

    if options.stream:
        return
    distinct = 64
    calls = make_calls(distinct, options.siblings, wants_logprobs=True, seed=RUNS)
    bodies[:] = [make_reply(rng, options.tokens) for _ in range(distinct)]
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    asyncio.run(record(middlewares[RUNS], calls, forward))
    after, _ = tracemalloc.get_traced_memory()
    stored = middlewares[RUNS].stats()["radix_tree_cached_tokens"]
    print(f"memory: {(after - before) / stored:.1f} bytes a stored token")


if __name__ == "__main__":
    main()
