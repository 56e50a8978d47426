"""Servers that grade: one pool of connections to them, and calls that are made again where that helps."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import Final
from weakref import WeakKeyDictionary

import aiohttp

from ..problems import RewardFailed
from ..replies import error_text

MAX_CONNECTIONS: Final = 64
"""Calls to the grader at a time; the others wait for a connection."""

MAX_TRIES: Final = 10
"""Tries for one sample, for as long as `reward_timeout_s` lasts."""

MAX_PAUSE_S: Final = 30.0
"""Longest pause between two tries; the first is half a second, and each is twice the one before."""

_TRY_AGAIN: Final = frozenset({408, 425, 429})
"""Statuses below 500 that may be another one the next time."""


class _Session:
    """The connections to graders, for as long as any call is under way."""

    def __init__(self) -> None:
        self.users = 0
        self.client: aiohttp.ClientSession | None = None


_sessions: "WeakKeyDictionary[asyncio.AbstractEventLoop, _Session]" = WeakKeyDictionary()


@contextlib.asynccontextmanager
async def grader_session() -> AsyncIterator[aiohttp.ClientSession]:
    """Share one pool of connections among all who are in the block; the last one out closes it.

    Nobody has to own it then, and none is left open when an event loop ends. Whoever holds the block open
    around many calls keeps connections alive between them.
    """
    session = _sessions.setdefault(asyncio.get_running_loop(), _Session())
    session.users += 1
    try:
        if session.client is None:
            session.client = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=MAX_CONNECTIONS),
                timeout=aiohttp.ClientTimeout(total=None),  # the reward's own time limits a call
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        yield session.client
    finally:
        session.users -= 1
        if session.users == 0 and session.client is not None:
            client, session.client = session.client, None
            await client.close()


async def ask_grader(url: str, body: bytes, *, max_reply_bytes: int) -> bytes:
    """POST JSON to a grader; return the body of its answer.

    A grader that cannot be reached, breaks off or answers 5xx, 408, 425 or 429 is asked again, up to ten
    times and for as long as `reward_timeout_s` lasts. Proxies in the environment are not used.

    Raises: RewardFailed where it refuses, keeps failing, or says more than `max_reply_bytes`.
    """
    problem = ""
    async with grader_session() as client:
        for attempt in range(MAX_TRIES):
            if attempt:
                pause_s = min(2.0 ** (attempt - 2), MAX_PAUSE_S)
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            try:
                status, reply = await _ask(client, url, body, max_reply_bytes)
            except (aiohttp.ClientError, OSError) as error:
                problem = f"{type(error).__name__}: {error}"
                continue
            if status < 300:
                return reply
            problem = f"it answered {status}: {error_text(reply)}"
            if status < 500 and status not in _TRY_AGAIN:
                break
    raise RewardFailed(f"the grader at {url} gave no reward: {problem}")


async def _ask(
    client: aiohttp.ClientSession, url: str, body: bytes, max_reply_bytes: int
) -> tuple[int, bytes]:
    headers = {"content-type": "application/json"}
    async with client.post(url, data=body, headers=headers, allow_redirects=False) as response:
        reply = bytearray()
        async for chunk in response.content.iter_any():
            reply += chunk
            if len(reply) > max_reply_bytes:
                raise RewardFailed(f"the grader at {url} answered more than {max_reply_bytes} bytes")
        return response.status, bytes(reply)
