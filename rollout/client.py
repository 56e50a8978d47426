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

from ..errors import HttpError, RolloutError, UpstreamError, UpstreamTimeout
from ..sglang import GenerateReply, decode_reply
from .events import EventSplitter
from .outage import Outages
from .problems import NotRecorded, Refused, RouterUnreachable
from .replies import (
    RecordedText,
    TreeStats,
    decode_recorded_text,
    decode_tree_stats,
    error_text,
    has_no_worker,
    refusal,
)
from .transport import connect_problem, content_of, open_client

CONTROL_CONNECTIONS: Final = 64
"""Connections for aborts and statistics, beside those for generations: as many aborts go out at a time."""

CONTROL_TIMEOUT_S: Final = 10.0
"""Time for a control call: the router answers these itself, or asks its workers for something short."""

_MAX_DOUBLINGS: Final = 30
"""Delays stop growing long before; without it a very long wait would overflow."""

_RETRIED_STATUSES: Final = frozenset({429, 503})
_T = TypeVar("_T")
_encode_json = msgspec.json.Encoder().encode


class _Readiness(msgspec.Struct, frozen=True):
    healthy_workers: int = 0


class _ModelInfo(msgspec.Struct, frozen=True):
    weight_version: str | None = None


_decode_model_info = msgspec.json.Decoder(_ModelInfo).decode
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
        doublings = min(failures - 1, _MAX_DOUBLINGS)
        delay_s = min(self.first_delay_s * 2.0**doublings, self.max_delay_s)
        return delay_s * random.uniform(0.5, 1.0)


class RouterClient:
    """Speaks to one router. Use as an async context manager, or `aclose()` it.

    Every method raises UpstreamTimeout when its deadline passes, UpstreamError where the router cannot be
    reached or fails (5xx), and Refused, a RolloutError, where it refuses the call (4xx). Only what never
    reached a worker is sent again: refused connections, 503 and 429.

    With `outages`, a generation that finds no router, or a router without workers, waits for them instead
    of using up its attempts, and raises RouterUnavailable when that lasts too long.
    """

    def __init__(
        self,
        router_url: str,
        *,
        max_connections: int,
        request_timeout_s: float,
        retry: RetryPolicy | None = None,
        outages: Outages | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.router_url = router_url.rstrip("/")
        self._request_timeout_s = request_timeout_s
        self._retry = retry or RetryPolicy()
        self._outages = outages
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

    async def stream(
        self, payload: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[bytes]:
        """POST `/generate` for a stream; yield the data of each event as it comes.

        Leaving the iterator closes the connection, on which the router aborts the request at its worker.

        Raises: BadReply also, where an event is too long.
        """
        body = _encode_json({**payload, "stream": True})
        fields = {"content-type": "application/json", **(headers or {})}
        events = EventSplitter()
        async with self._answering("POST", "/generate", self._request_timeout_s):
            response = await self._send(self._generation, "/generate", body, fields, is_stream=True)
            async with contextlib.aclosing(response):
                async for chunk in response.aiter_bytes():
                    for data in events.feed(chunk):
                        yield data

    async def retrieve_from_text(self, text: str, rid: str) -> RecordedText:
        """Return the recorded tokens of `text`, which ends with what request `rid` sampled.

        Raises: NotRecorded where the tree has dropped them already.
        """
        payload = {"text": text, "return_logp": True, "rid": rid}
        try:
            body = await self._post(self._generation, "/retrieve_from_text", payload, self._request_timeout_s)
        except Refused as error:
            if error.status != 404:
                raise
            raise NotRecorded(
                f"{error}. What is sampled at a time does not fit into the radix tree: run the router with "
                "a larger --middleware-arg radix_tree.max_cached_tokens=N"
            ) from None
        return self._decoded(decode_recorded_text, body, "/retrieve_from_text")

    async def abort(self, rid: str) -> None:
        """Ask every worker to stop request `rid`; one that is unknown or done is not an error.

        Sent once: whoever aborts looks whether it helped, and asks again.
        """
        await self._command("/abort_request", {"rid": rid})

    async def abort_all(self) -> None:
        """Ask every worker to stop whatever it does, for whomever."""
        await self._command("/abort_request", {"abort_all": True})

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

    async def weight_version(self) -> str | None:
        """Return the weight version that the workers serve; None where the router cannot tell."""
        async with self._answering("GET", "/model_info", CONTROL_TIMEOUT_S):
            response = await self._control.get("/model_info")
        if response.status_code != 200:
            return None
        return self._decoded(_decode_model_info, response.content, "/model_info").weight_version

    async def wait_for_workers(self) -> bool:
        """Wait until the router answers and has a worker; tell whether that was not so at first.

        A router that answers something else has another problem: it is not waited for.

        Raises: RouterUnavailable where it takes longer than `outages` bear.
        """
        failures = 0
        while self._outages is not None:
            try:
                workers = await self.count_workers()
            except RouterUnreachable as error:
                self._outages.router.note(str(error))
            except (HttpError, RolloutError):
                break
            else:
                self._outages.router.end()
                if workers > 0:
                    self._outages.workers.end()
                    break
                self._outages.workers.note("it counts 0 healthy ones")
            failures += 1
            await self._sleep(self._retry.delay_s(failures, None))
        return failures > 0

    async def _command(self, path: str, payload: Mapping[str, Any]) -> None:
        async with self._answering("POST", path, CONTROL_TIMEOUT_S):
            response = await self._control.post(path, json=payload)
        if response.status_code >= 300:
            raise refusal(self._name("POST", path), response.status_code, response.content)

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
            return (await self._send(client, path, body, fields)).content

    async def _send(
        self,
        client: httpx.AsyncClient,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        *,
        is_stream: bool = False,
    ) -> httpx.Response:
        """Send until there is a reply that is a success; of a stream, only its head has come then."""
        failures = waits = 0
        fields = {**headers, "content-length": str(len(body))}
        while True:
            retry_after = None
            try:
                request = client.build_request("POST", path, content=content_of(body), headers=fields)
                response = await client.send(request, stream=is_stream)
                if response.status_code >= 300:
                    await response.aread()
            except httpx.TransportError as error:
                problem = connect_problem(error)
                if problem is None:
                    raise
                is_waited_for = self._waits_for_router(path, problem)
                if not is_waited_for and failures + 1 >= self._retry.attempts:
                    raise
            else:
                if response.status_code < 300:
                    self._note_reply(path)
                    return response
                is_waited_for = self._waits_for_worker(path, response)
                is_busy = response.status_code in _RETRIED_STATUSES
                if not is_waited_for and (not is_busy or failures + 1 >= self._retry.attempts):
                    raise refusal(self._name("POST", path), response.status_code, response.content)
                retry_after = response.headers.get("retry-after")
            waits += is_waited_for
            failures += not is_waited_for
            await self._sleep(self._retry.delay_s(failures + waits, retry_after))

    def _waits_for_router(self, path: str, problem: str) -> bool:
        if self._outages is None:
            return False
        self._outages.router.note(f"{self._name('POST', path)}: {problem}")
        return True

    def _waits_for_worker(self, path: str, response: httpx.Response) -> bool:
        if self._outages is None or not has_no_worker(response.status_code, response.content):
            self._note_reply(path)
            return False
        self._outages.router.end()
        self._outages.workers.note(error_text(response.content))
        return True

    def _note_reply(self, path: str) -> None:
        if self._outages is not None:
            self._outages.router.end()
            if path == "/generate":
                self._outages.workers.end()

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
                raise RouterUnreachable(f"{request}: nothing answers there: {problem}") from error
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
