"""Carries out the faults that change how a reply goes out."""

import asyncio
from collections.abc import Awaitable, Callable

from .asgi import Message, Receive, Reply, Request, Send, sever, text_reply, transport_of
from .faults import Fault

Refuse = Callable[[float], None]
"""Stops listening for so many seconds."""


class Severed(Exception):
    """The connection is broken off; nothing more can be sent."""


class CutSend:
    """Sends half of a whole body, or `after_events` chunks of a stream, then breaks off."""

    def __init__(self, receive: Receive, send: Send, after_events: int) -> None:
        self._receive = receive
        self._send = send
        self._left = after_events

    async def __call__(self, message: Message) -> None:
        """Send `message`, or break off. Raises: Severed."""
        if message["type"] != "http.response.body":
            await self._send(message)
            return
        body: bytes = message.get("body", b"")
        if message.get("more_body") and self._left > 0:
            self._left -= 1
            await self._send(message)
            return
        if not message.get("more_body"):
            await self._send({**message, "body": body[: len(body) // 2], "more_body": True})
        await sever(self._receive, self._send, abruptly=False)
        raise Severed


class DripSend:
    """Sends every body in small pieces with a delay between them."""

    def __init__(self, send: Send, chunk_bytes: int, delay_s: float) -> None:
        self._send = send
        self._chunk_bytes = chunk_bytes
        self._delay_s = delay_s

    async def __call__(self, message: Message) -> None:
        """Send `message`, slowly."""
        body: bytes = message.get("body", b"")
        if message["type"] != "http.response.body" or len(body) <= self._chunk_bytes:
            await self._send(message)
            return
        for start in range(0, len(body), self._chunk_bytes):
            end = start + self._chunk_bytes
            more = end < len(body) or bool(message.get("more_body"))
            await self._send({**message, "body": body[start:end], "more_body": more})
            await asyncio.sleep(self._delay_s)


class ClosingSend:
    """Closes the connection right after the last byte, without having said so."""

    def __init__(self, send: Send) -> None:
        self._send = send

    async def __call__(self, message: Message) -> None:
        """Send `message`; close after the last one."""
        await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            transport_of(self._send).close()


async def misbehave(
    fault: Fault,
    request: Request,
    receive: Receive,
    send: Send,
    *,
    answer: Callable[[Request], Awaitable[Reply | None]],
    refuse: Refuse | None,
) -> None:
    """Answer `request` as `fault` has it. `answer` makes the reply of a well-behaved worker."""
    match fault.fault:
        case "refuse":
            await request.body()
            if refuse is not None:
                refuse(fault.duration_s)
            await sever(receive, send, abruptly=True)
        case "hang":
            await request.body()
            await request.left()
        case "die_before_headers":
            await request.body()
            await sever(receive, send, abruptly=True)
        case "http_error":
            await request.body()
            await text_reply("Internal Server Error", fault.status).send(send)
        case "die_mid_reply":
            await _send_through(CutSend(receive, send, fault.after_events), await answer(request))
        case "slow_drip":
            await _send_through(DripSend(send, fault.chunk_bytes, fault.delay_s), await answer(request))
        case _:
            await _send_through(ClosingSend(send), await answer(request))


async def _send_through(send: Send, reply: Reply | None) -> None:
    if reply is not None:
        await reply.send(send)
