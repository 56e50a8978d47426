"""uvicorn's HTTP protocol, with a short way for the calls of the data plane.

uvicorn connects, parses, keeps alive and shuts down. A request for one of the router's own paths, or one that
is not plain (pipelined, a path with percent signs, a key that does not fit), goes through its ASGI machinery;
any other becomes a `WireExchange`, and is served as soon as its body is there.

*Invariant*: a connection that serves no call is closed after `KEEP_ALIVE_S` without a byte, whether it is
idle, has half a head or lacks the rest of a body; all of them share one timer. What it holds is bounded: a
head by `MAX_HEAD_BYTES`, a body by the limit on bodies. Trailers are not kept.
"""

import asyncio
from typing import Any, Final

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from ..calls import Headers, Reply
from ..errors import BadRequest, HeadTooLarge, HttpError
from .app import RouterApp
from .course import Course
from .delays import DelayQueue
from .wire_exchange import WireExchange, reply_head

MAX_HEAD_BYTES: Final = 256 << 10
"""Longest head of a request, or what stands between two pieces of its body. Those of real clients take some
hundred bytes; the parser alone would keep any number of them."""

_UPGRADE_WITH_BODY: Final = (
    "A request with a body cannot ask for another protocol: leave out the header Upgrade (curl: --http1.1)"
)
"""The parser takes the body of such a request for the next request, and would have us run it."""


class RouterProtocol(HttpToolsProtocol):
    """Serves HTTP/1.1 for a `RouterApp`."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """Take what uvicorn gives to a protocol; the application is the configuration's."""
        super().__init__(config, server_state, app_state, _loop)
        app: Any = config.app
        assert isinstance(app, RouterApp)
        self._router = app
        self._exchange: WireExchange | None = None
        """The request that is being parsed, where it is one of ours."""
        self._served: WireExchange | RequestResponseCycle | None = None
        """The request that was served last, by whichever way; others may wait, pipelined, in `self.cycle`."""
        self._idle: DelayQueue[HttpToolsProtocol] = app.idle_connections
        self._head_bytes = 0
        """What has come since the last head was complete, or the last piece of a body."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a first request, for a while."""
        super().connection_made(transport)
        self._idle.add(self, self.loop)

    def connection_lost(self, exc: Exception | None) -> None:
        """End what is being served."""
        self._idle.discard(self)
        served = self._served
        if served is not None and not served.response_complete:
            served.disconnected = True
            served.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came. A call whose body is still on its way is begun: it waits for it."""
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(HeadTooLarge(f"The request's head is over {MAX_HEAD_BYTES} bytes"))
        if self._exchange is not self._served and self._exchange is not None:
            self._serve(self._exchange)
        if self._is_clients_turn():
            self._idle.add(self, self.loop)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP, which ends the connection: nobody knows where the next request begins."""
        self._refuse(BadRequest(msg))

    def on_message_begin(self) -> None:
        """Begin a request; only uvicorn's own way needs more."""
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def on_headers_complete(self) -> None:
        """Begin what was asked for; fields that come from now on are trailers, which nobody here reads."""
        self._head_bytes = 0
        if self.parser.should_upgrade() and _has_body(self.headers):
            self._refuse(BadRequest(_UPGRADE_WITH_BODY))
            raise httptools.HttpParserError(_UPGRADE_WITH_BODY)
        self._begin()
        self.headers = []

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._head_bytes = 0
        if self._exchange is None:
            super().on_body(body)
        else:
            self._exchange.receive(body)

    def on_message_complete(self) -> None:
        """Serve the call, now that all of it is there."""
        self._head_bytes = 0
        exchange = self._exchange
        if exchange is None:
            super().on_message_complete()
            return
        exchange.complete()
        if exchange is not self._served:
            self._serve(exchange)

    def on_response_complete(self) -> None:
        """Go on with the next request, or wait for one."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        else:
            self._idle.add(self, self.loop)

    def _begin(self) -> None:
        """Take a call of the data plane, or let uvicorn go on."""
        before, version = self.cycle, self.parser.get_http_version()
        path = self.url.partition(b"?")[0].decode("latin-1")
        if not (
            path.startswith("/")
            and "%" not in path
            and (before is None or before.response_complete)
            and version in ("1.1", "1.0")
            and not self.parser.should_upgrade()
            and self._router.takes_on_wire(path, self.headers)
        ):
            self._exchange = None
            self._go_uvicorns_way()
            return
        record = self._router.data_plane.open_record(
            self.parser.get_method().decode("ascii"), path, self.headers, self.client
        )
        exchange = WireExchange(
            self,
            record,
            target=self.url,
            headers=self.headers,
            keep_alive=version == "1.1" and self.parser.should_keep_alive(),
            expects_continue=version == "1.1" and self.expect_100_continue,
            knows_chunks=version == "1.1",
        )
        self._exchange = exchange
        self.cycle = exchange  # type: ignore[assignment]  # it stands in uvicorn's place

    def _is_clients_turn(self) -> bool:
        """Tell whether the next thing to come is from the client: a request, or the rest of one."""
        served = self._served
        return served is None or served.response_complete or served.more_body

    def _refuse(self, error: HttpError) -> None:
        """Answer what comes instead of a request, and close; a reply that is under way is broken off."""
        if self.transport.is_closing():
            return
        if self._is_clients_turn():
            reply = Reply.of_error(error)
            assert isinstance(reply.body, bytes)
            headers = [*reply.headers, (b"content-length", b"%d" % len(reply.body))]
            self.transport.write(reply_head(reply.status, headers, keep_alive=False) + reply.body)
        self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: a server may pass over the header Upgrade, and clients offer HTTP/2 by it."""

    def _unset_keepalive_if_required(self) -> None:
        self._idle.discard(self)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._served = cycle
        super()._start_asgi_task(cycle, app)

    def _serve(self, exchange: WireExchange) -> None:
        self._served = exchange
        plane = self._router.data_plane
        if plane.needs_tasks or exchange.more_body:
            task = exchange.task = self.loop.create_task(plane.serve(exchange))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        else:
            running: set[Any] = self.tasks  # the server only counts and cancels what is in there
            exchange.task = Course(plane.serve(exchange), plane.turn, self.loop, running.discard)
            running.add(exchange.task)

    def _go_uvicorns_way(self) -> None:
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers = self.scope["headers"] = headers
        super().on_headers_complete()


def _has_body(headers: Headers) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in headers
    )
