"""The rollout's HTTP client: every call to the router, with its deadline, its retries and its errors.

Generation and control have a pool of connections each: with all the pool's connections held by
generations, an abort must still get out.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final, Self, TypeVar

import httpx
import msgspec

from ..errors import HttpError, RolloutError, UpstreamError, UpstreamTimeout
from ..sglang import GenerateReply, decode_reply
from .delivery import Delivery, RetryPolicy
from .events import EventSplitter
from .outage import Outages
from .problems import NotRecorded, Refused, RouterUnreachable
from .replies import RecordedText, TreeStats, decode_recorded_text, decode_tree_stats, refusal
from .transport import GenerationPool, error_of, open_control_client

__all__ = ["CONTROL_CONNECTIONS", "CONTROL_TIMEOUT_S", "RetryPolicy", "RouterClient"]

CONTROL_CONNECTIONS: Final = 64
"""Connections for aborts and statistics, beside those for generations: as many aborts go out at a time."""

CONTROL_TIMEOUT_S: Final = 10.0
"""Time for a control call: the router answers these itself, or asks its workers for something short."""

_T = TypeVar("_T")
_encode_json = msgspec.json.Encoder().encode


class _Readiness(msgspec.Struct, frozen=True):
    healthy_workers: int = 0


class _ModelInfo(msgspec.Struct, frozen=True):
    weight_version: str | None = None


_decode_model_info = msgspec.json.Decoder(_ModelInfo).decode
_decode_readiness = msgspec.json.Decoder(_Readiness).decode


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
        self._generation = GenerationPool(self.router_url, max_connections=max_connections)
        self._delivery = Delivery(
            self._generation, self.router_url, retry=self._retry, outages=outages, sleep=sleep
        )
        self._control = open_control_client(
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
        body = await self._post("/generate", payload, headers)
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
            reply = await self._delivery.post("/generate", body, fields, leaves_open=True)
            assert reply.open is not None
            with contextlib.closing(reply.open):
                async for chunk in reply.open.chunks():
                    for data in events.feed(chunk):
                        yield data

    async def retrieve_from_text(self, text: str, rid: str) -> RecordedText:
        """Return the recorded tokens of `text`, which ends with what request `rid` sampled.

        Raises: NotRecorded where the tree has dropped them already.
        """
        payload = {"text": text, "return_logp": True, "rid": rid}
        try:
            body = await self._post("/retrieve_from_text", payload)
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
        self, path: str, payload: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> bytes:
        fields = {"content-type": "application/json", **(headers or {})}
        body = _encode_json(payload)
        async with self._answering("POST", path, self._request_timeout_s):
            return (await self._delivery.post(path, body, fields)).body

    @contextlib.asynccontextmanager
    async def _answering(self, method: str, path: str, timeout_s: float) -> AsyncIterator[None]:
        request = self._name(method, path)
        try:
            async with asyncio.timeout(timeout_s):
                yield
        except TimeoutError:
            raise UpstreamTimeout(f"{request} gave no answer in {timeout_s:g} s") from None
        except (httpx.ReadTimeout, httpx.WriteTimeout) as error:
            raise UpstreamTimeout(f"{request} gave no answer in {timeout_s:g} s") from error
        except httpx.TransportError as error:
            raise error_of(request, error) from error

    def _decoded(self, decode: Callable[[bytes], _T], body: bytes, path: str) -> _T:
        try:
            return decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UpstreamError(f"{self.router_url}{path} answered what it should not: {error}") from None

    def _name(self, method: str, path: str) -> str:
        return f"{method} {self.router_url}{path}"
