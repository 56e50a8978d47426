"""A worker that always gives the same `/generate` reply, as fast as Python can: the other end of a benchmark.

python benchmarks/static_worker.py --port 9101 --tokens 1024
python benchmarks/static_worker.py --port 9101 --bytes 1024
"""

import argparse
import asyncio
import struct
from pathlib import Path
from typing import cast

import httptools
import msgspec
import uvloop


def small_reply(size_bytes: int) -> bytes:
    """Return a reply of about `size_bytes` that is one sampled token and padding."""
    return msgspec.json.encode(generation(1) | {"pad": "x" * max(0, size_bytes - 466)})


def generation(tokens: int) -> dict[str, object]:
    """Return a reply of `tokens` tokens with log-probabilities, shaped as SGLang 0.5.23 shapes it."""
    ids = [40 + index % 400 for index in range(tokens)]
    logprobs = [
        [struct.unpack("f", struct.pack("f", -0.001 - index % 997 * 0.01))[0], token, None]
        for index, token in enumerate(ids)
    ]
    return {
        "text": "word " * tokens,
        "output_ids": ids,
        "meta_info": {
            "id": "0123456789abcdef0123456789abcdef",
            "finish_reason": {"type": "length", "length": tokens},
            "prompt_tokens": 12,
            "weight_version": "default",
            "num_retractions": 0,
            "input_token_logprobs": [],
            "output_token_logprobs": logprobs,
            "output_token_logprobs_length": tokens,
            "reasoning_tokens": 0,
            "completion_tokens": tokens,
            "cached_tokens": 0,
            "weight_versions": [{"version": "default", "start": 0, "end": tokens}],
            "e2e_latency": 0.01,
        },
    }


class StaticProtocol(asyncio.Protocol):
    """Answers `/model_info` with a tokenizer's path, and everything else with one reply."""

    def __init__(self, generate: bytes, model_info: bytes) -> None:
        self._generate = generate
        self._model_info = model_info
        self._parser = httptools.HttpRequestParser(self)
        self._reply = generate

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Parse requests."""
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        """Choose the reply."""
        self._reply = self._model_info if url == b"/model_info" else self._generate

    def on_message_complete(self) -> None:
        """Answer."""
        self._transport.write(self._reply)


async def serve(port: int, body: bytes) -> None:
    """Serve until killed."""
    tokenizer = str(Path(__file__).parents[1] / "simulator")
    info = {"model_path": tokenizer, "tokenizer_path": tokenizer, "weight_version": "default"}
    generate, model_info = _with_head(body), _with_head(msgspec.json.encode(info))
    server = await asyncio.get_running_loop().create_server(
        lambda: StaticProtocol(generate, model_info), "127.0.0.1", port, backlog=4096
    )
    await server.serve_forever()


def _with_head(body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    return head + body


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, required=True)
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--tokens", type=int, help="tokens of the reply, with log-probabilities")
    size.add_argument("--bytes", type=int, help="length of a small reply")
    options = parser.parse_args()
    body = small_reply(options.bytes) if options.bytes else msgspec.json.encode(generation(options.tokens))
    uvloop.run(serve(options.port, body))


if __name__ == "__main__":
    main()
