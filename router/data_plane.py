"""Takes calls in, runs them through the handlers, and hands the replies back.

No routing, no request object and no validation of bodies: that is what makes it fast. What a call may do is
decided by the middleware and, in the end, by the worker. How requests come and replies go is an `Exchange`'s.
"""

import asyncio
import logging
from time import perf_counter
from typing import Final

from ..calls import Call, Handler, Headers, Reply
from ..errors import HttpError, NoWorkerAvailable, PayloadTooLarge, QueueTimeout, TooManyCalls
from .admission import Admission, Withdrawn
from .asgi_exchange import WATCH_AFTER_S, AsgiExchange, Receive, Scope, Send
from .course import Turn
from .delays import DelayQueue
from .exchange import Exchange
from .headers import end_to_end_request
from .ledger import CLIENT_GONE, CallRecord, OnEnd
from .request_id import RequestIds, tell_request_id
from .withdrawn import withdrawn_reply

SHUTTING_DOWN: Final = NoWorkerAvailable("The router is shutting down", retry_after_s=5)

_FAILED: Final = "The router failed to serve this call; its log says why"

_log = logging.getLogger("espalier.router")


class DataPlane:
    """Serves every path that is not the router's own."""

    def __init__(
        self,
        handler: Handler,
        *,
        max_body_bytes: int,
        request_ids: RequestIds,
        on_end: OnEnd,
        admission: Admission | None = None,
        needs_tasks: bool = True,
    ) -> None:
        """Answer calls with `handler`; `on_end` gets the record of each one that has ended.

        Without `admission`, however many calls come are served at once. `needs_tasks` is whether the handler
        may wait for what it likes, or knows of courses.
        """
        self._handler = handler
        self.max_body_bytes = max_body_bytes
        self._request_ids = request_ids
        self._on_end = on_end
        self._admission = admission
        self.needs_tasks = needs_tasks
        """Whether each call is served in a task of its own from the beginning, and not as a `Course`."""
        self.turn = Turn()
        self._unwatched: DelayQueue[AsgiExchange] = DelayQueue(WATCH_AFTER_S, AsgiExchange.start_watching)
        self.in_flight = 0
        self.hung_up_total = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request over ASGI."""
        await self.serve(self.exchange(scope, receive, send))

    def exchange(self, scope: Scope, receive: Receive, send: Send) -> AsgiExchange:
        """Return an ASGI request as an exchange, with a record of its own."""
        record = self.open_record(scope["method"], scope["path"], scope["headers"], scope.get("client"))
        return AsgiExchange(scope, receive, send, record, self._unwatched)

    def open_record(
        self, method: str, path: str, headers: Headers, client: tuple[str, int] | None
    ) -> CallRecord:
        """Return the record of a request that has just come."""
        return CallRecord(method, path, self._request_ids.of(headers), client, perf_counter())

    async def serve(self, exchange: Exchange) -> None:
        """Serve one request, from its head to the last byte of its reply."""
        self.in_flight += 1
        try:
            body = await exchange.read_body(self.max_body_bytes)
            if body is not None:
                await self._serve(exchange, self._call(exchange, body))
        except PayloadTooLarge as error:
            await exchange.write(Reply.of_error(error))
        except asyncio.CancelledError:  # while its body was still coming
            await exchange.write(Reply.of_error(SHUTTING_DOWN))
        finally:
            self.in_flight -= 1
            self._on_end(exchange.record)

    async def _serve(self, exchange: Exchange, call: Call) -> None:
        reply: Reply | None = None
        is_inside = False
        exchange.watch()
        try:
            if self._admission is not None:
                await self._admission.enter(call)
                is_inside = True
            reply = await self._answer(call)
            await exchange.write(reply)
        except (QueueTimeout, TooManyCalls) as error:
            await exchange.write(Reply.of_error(error))
        except Withdrawn:
            await exchange.write(withdrawn_reply(call))
        except HttpError as error:
            exchange.break_off()
            _log.warning(
                "event=reply_cut_short path=%s request_id=%s reason=%r",
                call.path,
                call.request_id,
                error.message,
            )
        except asyncio.CancelledError:
            if exchange.has_hung_up:
                self.hung_up_total += 1
                _log.info("event=client_hung_up path=%s request_id=%s", call.path, call.request_id)
            else:
                await _end(exchange, SHUTTING_DOWN)
        except Exception:  # noqa: BLE001  a plug-in's reply may be none
            _log.exception("event=reply_failed path=%s request_id=%s", call.path, call.request_id)
            await _end(exchange, HttpError(_FAILED))
        finally:
            exchange.unwatch()
            if is_inside and self._admission is not None:
                self._admission.leave()
            if reply is not None and not isinstance(reply.body, bytes):
                await reply.body.aclose()

    async def _answer(self, call: Call) -> Reply:
        try:
            return await self._handler(call)
        except HttpError as error:
            return Reply.of_error(error)
        except Exception:  # noqa: BLE001  a plug-in's bug ends its call, not the process
            _log.exception("event=call_failed path=%s request_id=%s", call.path, call.request_id)
            return Reply.of_error(HttpError(_FAILED))

    def _call(self, exchange: Exchange, body: bytes) -> Call:
        record = exchange.record
        headers = end_to_end_request(exchange.headers)
        tell_request_id(headers, record.request_id)
        return Call(
            method=record.method,
            path=exchange.path,
            target=exchange.target,
            headers=headers,
            body=body,
            request_id=record.request_id.decode(),
        )


async def _end(exchange: Exchange, error: HttpError) -> None:
    """Tell the client of `error`, or, where it has a part of a reply already, break that off."""
    if exchange.record.status == CLIENT_GONE:
        await exchange.write(Reply.of_error(error))
    else:
        exchange.break_off()
