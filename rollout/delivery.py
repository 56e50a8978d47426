"""Getting a call to a worker: what never reached one is sent again, and an outage is waited out."""

import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

from .outage import Outages
from .problems import RouterUnreachable
from .replies import error_text, has_no_worker, refusal
from .transport import GenerationPool, HttpReply

_MAX_DOUBLINGS: Final = 30
"""Delays stop growing long before; without it a very long wait would overflow."""

_RETRIED_STATUSES: Final = frozenset({429, 503})


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


class Delivery:
    """Sends calls over a pool until each has a reply that is a success, or is not to be sent again.

    With `outages`, a call that finds no router, or a router without workers, waits for them instead of using
    up its attempts.
    """

    def __init__(
        self,
        pool: GenerationPool,
        router_url: str,
        *,
        retry: RetryPolicy,
        outages: Outages | None,
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._pool = pool
        self._router_url = router_url
        self._retry = retry
        self._outages = outages
        self._sleep = sleep

    async def post(
        self, path: str, body: bytes, headers: Mapping[str, str], *, leaves_open: bool = False
    ) -> HttpReply:
        """Return the reply to a call, with its body still to come where it `leaves_open` that.

        Raises: Refused or UpstreamError for a reply that is no success; RouterUnreachable where the attempts
        are used up; RouterUnavailable where an outage lasts too long; UpstreamError for a lost connection.
        """
        failures = waits = 0
        while True:
            retry_after = None
            try:
                reply = await self._pool.post(path, body, headers, leaves_open=leaves_open)
            except RouterUnreachable as error:
                is_waited_for = self._waits_for_router(str(error))
                if not is_waited_for and failures + 1 >= self._retry.attempts:
                    raise
            else:
                if reply.is_success:
                    self._note_reply(path)
                    return reply
                is_waited_for = self._waits_for_worker(path, reply)
                is_busy = reply.status in _RETRIED_STATUSES
                if not is_waited_for and (not is_busy or failures + 1 >= self._retry.attempts):
                    raise refusal(f"POST {self._router_url}{path}", reply.status, reply.body)
                retry_after = reply.retry_after
            waits += is_waited_for
            failures += not is_waited_for
            await self._sleep(self._retry.delay_s(failures + waits, retry_after))

    def _waits_for_router(self, problem: str) -> bool:
        if self._outages is None:
            return False
        self._outages.router.note(problem)
        return True

    def _waits_for_worker(self, path: str, reply: HttpReply) -> bool:
        if self._outages is None or not has_no_worker(reply.status, reply.body):
            self._note_reply(path)
            return False
        self._outages.router.end()
        self._outages.workers.note(error_text(reply.body))
        return True

    def _note_reply(self, path: str) -> None:
        if self._outages is not None:
            self._outages.router.end()
            if path == "/generate":
                self._outages.workers.end()
