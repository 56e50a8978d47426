"""The rollout's HTTP client: every call to the router, with its deadline, its retries and its errors.

Generation and control have a pool of connections each: with all the pool's connections held by
generations, an abort must still get out.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self, TypeVar

import httpx
import msgspec

from ..errors import UpstreamError, UpstreamTimeout
from ..sglang import GenerateReply, decode_reply
from .replies import (
    RecordedText,
    TreeStats,
    decode_recorded_text,
    decode_tree_stats,
    refusal,
)
from .transport import connect_problem, open_client

CONTROL_CONNECTIONS: Final = 16
"""Connections for aborts and statistics, beside those for generations."""

CONTROL_TIMEOUT_S: Final = 10.0
"""Time for a control call: the router answers these itself, or asks its workers for something short."""

_RETRIED_STATUSES: Final = frozenset({429, 503})
_T = TypeVar("_T")
_encode_json = msgspec.json.Encoder().encode


class _Readiness(msgspec.Struct, frozen=True):
    healthy_workers: int = 0


_decode_readiness = msgspec.json.Decoder(_Readiness).decode


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and how soon a request is sent again that never reached a worker."""

    attempts: int = 8
    """tries in all"""

    first_delay_s: float = 0.2
    """delay after the first failure; doubles with each one, half of it at random"""

    max_delay_s: float = 5.0
    """longest delay of our own"""

    max_retry_after_s: float = 60.0
    """longest delay that a reply's Retry-After may ask for"""

    def delay_s(self, failures: int, retry_after: str | None) -> float:
        """Return the seconds to wait after so many failures; a Retry-After in seconds goes first."""
        if retry_after is not None and retry_after.isascii() and retry_after.isdigit():
            return min(float(retry_after), self.max_retry_after_s)
        delay_s = min(self.first_delay_s * 2.0 ** (failures - 1), self.max_delay_s)
        return delay_s * random.uniform(0.5, 1.0)


class RouterClient:
    """Speaks to one router. Use as an async context manager, or `aclose()` it.

    Every method raises UpstreamTimeout when its deadline passes, UpstreamError where the router cannot be
    reached or fails (5xx), and RolloutError where it refuses the call (4xx). Only what never reached a
    worker is sent again: refused connections, 503 and 429.
    """

    def __init__(
        self,
        router_url: str,
        *,
        max_connections: int,
        request_timeout_s: float,
        retry: RetryPolicy | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.router_url = router_url.rstrip("/")
        self._request_timeout_s = request_timeout_s
        self._retry = retry or RetryPolicy()
        self._sleep = sleep
        self._generation = open_client(
            self.router_url, max_connections=max_connections, read_timeout_s=request_timeout_s
        )
        self._control = open_client(
            self.router_url, max_connections=CONTROL_CONNECTIONS, read_timeout_s=CONTROL_TIMEOUT_S
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._generation.aclose()
        await self._control.aclose()

    async def generate(
        self, payload: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> GenerateReply:
        """POST `/generate`: one generation, not streamed."""
        body = await self._post(self._generation, "/generate", payload, self._request_timeout_s, headers)
        return self._decoded(decode_reply, body, "/generate")

    async def retrieve_from_text(self, text: str, rid: str) -> RecordedText:
        """Return the recorded tokens of `text`, which ends with what request `rid` sampled."""
        payload = {"text": text, "return_logp": True, "rid": rid}
        body = await self._post(self._generation, "/retrieve_from_text", payload, self._request_timeout_s)
        return self._decoded(decode_recorded_text, body, "/retrieve_from_text")

    async def abort(self, rid: str) -> None:
        """Ask every worker to stop request `rid`; one that is unknown or done is not an error."""
        await self._post(self._control, "/abort_request", {"rid": rid}, CONTROL_TIMEOUT_S)

    async def tree_stats(self) -> TreeStats | None:
        """Return the radix tree's counters, or None where the router keeps no tree."""
        async with self._answering("GET", "/radix_tree/stats", CONTROL_TIMEOUT_S):
            response = await self._control.get("/radix_tree/stats")
        if response.status_code == 404:
            return None
        if response.status_code != 200:
            raise refusal(self._name("GET", "/radix_tree/stats"), response.status_code, response.content)
        return self._decoded(decode_tree_stats, response.content, "/radix_tree/stats")

    async def count_workers(self) -> int:
        """Return how many workers the router would send a call to now."""
        async with self._answering("GET", "/readiness", CONTROL_TIMEOUT_S):
            response = await self._control.get("/readiness")
        if response.status_code not in (200, 503):
            raise refusal(self._name("GET", "/readiness"), response.status_code, response.content)
        return self._decoded(_decode_readiness, response.content, "/readiness").healthy_workers

    async def _post(
        self,
        client: httpx.AsyncClient,
        path: str,
        payload: Mapping[str, Any],
        timeout_s: float,
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        fields = {"content-type": "application/json", **(headers or {})}
        body = _encode_json(payload)
        async with self._answering("POST", path, timeout_s):
            return await self._send(client, path, body, fields)

    async def _send(
        self, client: httpx.AsyncClient, path: str, body: bytes, headers: Mapping[str, str]
    ) -> bytes:
        failures = 0
        while True:
            try:
                response = await client.post(path, content=body, headers=headers)
            except httpx.TransportError as error:
                failures += 1
                if connect_problem(error) is None or failures >= self._retry.attempts:
                    raise
                retry_after = None
            else:
                if response.status_code < 300:
                    return response.content
                failures += 1
                if response.status_code not in _RETRIED_STATUSES or failures >= self._retry.attempts:
                    raise refusal(self._name("POST", path), response.status_code, response.content)
                retry_after = response.headers.get("retry-after")
            await self._sleep(self._retry.delay_s(failures, retry_after))

    @contextlib.asynccontextmanager
    async def _answering(self, method: str, path: str, timeout_s: float) -> AsyncIterator[None]:
        request = self._name(method, path)
        try:
            async with asyncio.timeout(timeout_s):
                yield
        except TimeoutError:
            raise UpstreamTimeout(f"{request} gave no answer in {timeout_s:g} s") from None
        except httpx.TransportError as error:
            problem = connect_problem(error)
            if problem is not None:
                raise UpstreamError(f"{request}: nothing answers there: {problem}") from error
            if isinstance(error, httpx.ReadTimeout | httpx.WriteTimeout):
                raise UpstreamTimeout(f"{request} gave no answer in {timeout_s:g} s") from error
            raise UpstreamError(f"{request}: the connection was lost ({error})") from error

    def _decoded(self, decode: Callable[[bytes], _T], body: bytes, path: str) -> _T:
        try:
            return decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UpstreamError(f"{self.router_url}{path} answered what it should not: {error}") from None

    def _name(self, method: str, path: str) -> str:
        return f"{method} {self.router_url}{path}"
