"""The pool of connections, in front of scripted workers; no router."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator

import pytest

from espalier.calls import Call
from espalier.errors import UpstreamTimeout
from espalier.router.failures import ConnectFailed, ConnectionDropped
from espalier.router.origin import Origin
from espalier.router.upstream import Upstream
from tests.router.running import closed_port_url, run, unaccepting_url
from tests.router.scripted import answering, reply, scripted_worker

Ask = Callable[..., Awaitable[bytes]]
"""Sends a call for a path, "/" unless told otherwise; returns the body of the reply."""


def call(path: str) -> Call:
    return Call(method="GET", path=path, target=path.encode(), headers=[], body=b"", request_id="r")


@contextlib.contextmanager
def upstream(
    *,
    timeout_s: float = 20.0,
    connect_timeout_s: float = 5.0,
    idle_timeout_s: float = 20.0,
    stale_within_s: float = 20.0,
) -> Iterator[Upstream]:
    made = Upstream(
        connect_timeout_s=connect_timeout_s,
        request_timeout_s=timeout_s,
        idle_timeout_s=idle_timeout_s,
        stale_within_s=stale_within_s,
    )
    yield made
    made.close_idle()


def asking(to: Upstream, origin: Origin) -> Ask:
    async def ask(path: str = "/") -> bytes:
        return await (await to.send(origin, call(path))).read()

    return ask


class Numbering:
    """A worker that answers with the number of the connection, and notes when one is closed."""

    def __init__(self) -> None:
        self.connections: list[socket.socket] = []
        self.closed = threading.Semaphore(0)

    def __call__(self, client: socket.socket, _: bytes) -> bool:
        if client not in self.connections:
            self.connections.append(client)
        client.sendall(reply(b"%d" % (1 + self.connections.index(client))))
        if client.recv(1, socket.MSG_PEEK):
            return True
        self.closed.release()
        return False

    async def wait_closed(self) -> None:
        assert await asyncio.to_thread(self.closed.acquire, timeout=20)


def test_connection_is_used_again() -> None:
    async def test(url: str) -> None:
        with upstream() as to:
            ask = asking(to, Origin.parse(url))
            assert [await ask() for _ in range(3)] == [b"1"] * 3

    with scripted_worker(Numbering()) as url:
        run(test(url))


def test_idle_connection_that_the_worker_closed_is_replaced() -> None:
    connections: list[socket.socket] = []
    requests = 0

    def script(client: socket.socket, request: bytes) -> bool:
        nonlocal requests
        requests += 1
        if client in connections:
            return False
        connections.append(client)
        client.sendall(reply(b"%d" % len(connections)))
        return True

    async def test(url: str) -> None:
        with upstream() as to:
            ask = asking(to, Origin.parse(url))
            assert [await ask() for _ in range(2)] == [b"1", b"2"]

    with scripted_worker(script) as url:
        run(test(url))
    assert requests == 3


def test_request_that_the_worker_may_have_read_is_not_told_as_never_sent() -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def script(client: socket.socket, request: bytes) -> bool:
        if b"GET /last " in request:
            listener.shutdown(socket.SHUT_RDWR)
            return False
        client.sendall(reply())
        return True

    async def test(url: str) -> None:
        with upstream() as to:
            ask = asking(to, Origin.parse(url))
            await ask()
            with pytest.raises(ConnectionDropped):
                await ask("/last")
            with pytest.raises(ConnectFailed):
                await ask()

    with scripted_worker(script, listener) as url:
        run(test(url))


def test_kept_connection_that_ends_late_is_not_taken_for_one_that_was_closed_before() -> None:
    def breaking(client: socket.socket, request: bytes) -> bool:
        client.sendall(b"" if b"GET /break" in request else reply(b"first"))
        return b"GET /break" not in request

    async def test(url: str) -> None:
        for stale_within_s, is_stale in ((0.0, False), (20.0, True)):
            with upstream(stale_within_s=stale_within_s) as to:
                origin = Origin.parse(url)
                await asking(to, origin)()
                with pytest.raises(ConnectionDropped) as dropped:
                    await to.send(origin, call("/break"), may_resend=is_stale is False)
                assert dropped.value.is_stale is is_stale

    with scripted_worker(breaking) as url:
        run(test(url))


def test_connection_is_closed_once_it_was_idle_for_too_long() -> None:
    worker = Numbering()

    async def test(url: str) -> None:
        with upstream(idle_timeout_s=0.05) as to:
            ask = asking(to, Origin.parse(url))
            assert await ask() == b"1"
            await worker.wait_closed()
            assert await ask() == b"2"

    with scripted_worker(worker) as url:
        run(test(url))


def test_all_idle_connections_are_closed_at_once() -> None:
    worker = Numbering()

    async def test(url: str) -> None:
        with upstream() as to:
            ask = asking(to, Origin.parse(url))
            assert sorted(await asyncio.gather(ask(), ask())) == [b"1", b"2"]
            to.close_idle()
            await worker.wait_closed()
            await worker.wait_closed()
            assert await ask() == b"3"

    with scripted_worker(worker) as url:
        run(test(url))


def test_connection_that_was_used_last_is_taken_first() -> None:
    go_on = threading.Event()

    def script(client: socket.socket, request: bytes) -> bool:
        if request.startswith(b"GET /slow "):
            assert go_on.wait(20)
        client.sendall(reply(b"%d" % client.getpeername()[1]))
        return True

    async def test(url: str) -> None:
        with upstream() as to:
            ask = asking(to, Origin.parse(url))
            slow = asyncio.ensure_future(ask("/slow"))
            quick = await ask()
            go_on.set()
            last = await slow
            assert last != quick
            assert [await ask() for _ in range(2)] == [last, last]

    with scripted_worker(script) as url:
        run(test(url))


def test_upstreams_share_neither_connections_nor_deadlines() -> None:
    never = threading.Event()
    connections: list[socket.socket] = []

    def script(client: socket.socket, request: bytes) -> bool:
        connections.append(client)
        if request.startswith(b"GET /long "):
            never.wait(0.6)
        client.sendall(reply(b"done"))
        return True

    async def test(url: str) -> None:
        origin = Origin.parse(url)
        with upstream(timeout_s=0.2) as hasty, upstream() as patient:
            assert await asking(hasty, origin)() == b"done"
            assert await asking(patient, origin)("/long") == b"done"
            with pytest.raises(UpstreamTimeout):
                await asking(hasty, origin)("/long")

    with scripted_worker(script) as url:
        run(test(url))
    assert connections[0] is not connections[1]


def test_worker_that_takes_no_connection_in_time_is_told() -> None:
    async def test(url: str) -> None:
        with (
            upstream(connect_timeout_s=0.05) as to,
            pytest.raises(ConnectFailed, match=r"took no connection within 0\.05 s"),
        ):
            await asking(to, Origin.parse(url))()

    with unaccepting_url() as url:
        run(test(url))


@pytest.mark.parametrize("host", ["nowhere.invalid", ".".join(["a" * 60] * 5)])
def test_host_that_is_unknown_is_a_connection_not_taken(host: str) -> None:
    async def test() -> None:
        with upstream() as to, pytest.raises(ConnectFailed, match="took no connection: "):
            await asking(to, Origin.parse(f"http://{host}:1"))()

    run(test())


def test_worker_that_refuses_is_told() -> None:
    async def test(url: str) -> None:
        with upstream() as to, pytest.raises(ConnectFailed, match=r"took no connection: .*refused"):
            await asking(to, Origin.parse(url))()

    with closed_port_url() as url:
        run(test(url))


def test_path_of_the_workers_url_precedes_every_target() -> None:
    seen: list[bytes] = []

    def script(client: socket.socket, request: bytes) -> bool:
        seen.append(request)
        return answering(reply())(client, request)

    async def test(url: str) -> None:
        with upstream() as to:
            await asking(to, Origin.parse(f"{url}/engines/7/"))("/generate?a=1")

    with scripted_worker(script) as url:
        run(test(url))
    assert seen[0].startswith(b"GET /engines/7/generate?a=1 HTTP/1.1\r\n")


def test_deadline_reaches_to_the_last_byte() -> None:
    def script(client: socket.socket, request: bytes) -> bool:
        client.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
        return client.recv(1) != b""

    async def test(url: str) -> None:
        with upstream(timeout_s=0.1) as to:
            begun = await to.send(Origin.parse(url), call("/"))
            with pytest.raises(UpstreamTimeout, match=r"within 0\.1 s"):
                await begun.read()

    with scripted_worker(script) as url:
        run(test(url))


def test_deadline_of_a_call_without_reply_is_504() -> None:
    async def test(url: str) -> None:
        with upstream(timeout_s=0.1) as to, pytest.raises(UpstreamTimeout) as caught:
            await asking(to, Origin.parse(url))()
        assert caught.value.status == 504

    with scripted_worker(lambda client, _: client.recv(1) != b"") as url:
        run(test(url))
