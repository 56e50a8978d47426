"""A router without a router: answers every `/generate` with the same reply, a set time after it was asked.

    python -m benchmarks.rollout_client.upstream PORT TOKENS REPLY_AFTER_S

It costs some 30 µs a call, so that one core of it is never what a client waits for. The time until the reply
stands for the worker's: with it, as many calls are in flight as the client sends at a time. It varies evenly
from nothing to twice REPLY_AFTER_S, as responses vary in length: replies that all take as long come in
bursts, between which a client has nothing to do. It also answers what a client or a router asks besides, so
it can be a worker, too.
"""

import asyncio
import random
import re
import sys
from typing import Final, cast

import uvloop

from benchmarks.comparison.replies import whole_reply

LISTEN_BACKLOG: Final = 4096
"""Connections that may wait to be accepted: a client opens thousands at once."""

_ANSWERS: Final = {
    b"/readiness": b'{"healthy_workers":1}',
    b"/model_info": b'{"model_path":"none","weight_version":"default"}',
}
_CONTENT_LENGTH: Final = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)


def http_reply(body: bytes, status: bytes = b"200 OK") -> bytes:
    """Return a whole reply as it goes over the wire."""
    head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % (status, len(body)) + body


class Upstream:
    """The replies, and how many calls are waiting for theirs."""

    def __init__(self, tokens: int, reply_after_s: float) -> None:
        self.reply = http_reply(whole_reply(tokens))
        self.reply_after_s = reply_after_s
        self.in_flight = 0
        self.most_in_flight = 0
        self._random = random.Random(0)

    def begin(self) -> float:
        """Count a call; return after how many seconds it is to be answered."""
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        return self._random.uniform(0.0, 2.0 * self.reply_after_s)

    def answer(self, path: bytes) -> bytes:
        """Return the reply to anything but `/generate`."""
        if path == b"/most_in_flight":
            return http_reply(b"%d" % self.most_in_flight)
        if path == b"/radix_tree/stats":
            return http_reply(b"{}", b"404 Not Found")
        return http_reply(_ANSWERS.get(path, b"{}"))


class Connection(asyncio.Protocol):
    """One connection of a client, which sends a request once it has the reply to the one before."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._received = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep what to write to."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        """Answer once the request is there as a whole."""
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        found = _CONTENT_LENGTH.search(head)
        if not end or len(body) < (int(found[1]) if found else 0):
            return
        self._received = b""
        path = head.split(b" ", 2)[1]
        if path != b"/generate":
            self._write(self._upstream.answer(path))
            return
        asyncio.get_running_loop().call_later(self._upstream.begin(), self._reply)

    def _reply(self) -> None:
        self._upstream.in_flight -= 1
        self._write(self._upstream.reply)

    def _write(self, reply: bytes) -> None:
        assert self._transport is not None
        if not self._transport.is_closing():
            self._transport.write(reply)


async def serve(port: int, upstream: Upstream) -> None:
    """Answer until the process is ended."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(upstream), "127.0.0.1", port, backlog=LISTEN_BACKLOG)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), Upstream(int(sys.argv[2]), float(sys.argv[3]))))
