"""Real servers on real sockets, for tests: any ASGI application, on a free port, in a thread of its own."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn


@contextlib.contextmanager
def serve(
    app: Any, *, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None, **uvicorn_options: Any
) -> Iterator[str]:
    """Serve `app` until the block ends; yields its URL, without trailing slash.

    `loop_factory` makes the event loop, asyncio's own unless told otherwise.
    """
    # Told that it is TCP, asyncio sends small packets at once; else a reply in two writes waits 40 ms.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(1024)
    # Longer than a client keeps a connection: else the server may close one just as it is used again.
    options: dict[str, Any] = {"http": "httptools", "lifespan": "on", "timeout_keep_alive": 75}
    server = _ReportingServer(
        uvicorn.Config(app, timeout_graceful_shutdown=2, log_level="warning", **options | uvicorn_options)
    )

    def run() -> None:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(server.serve(sockets=[listener]))

    thread = threading.Thread(target=run, name="serve", daemon=True)
    thread.start()
    try:
        if not server.ready.wait(timeout=30) or not server.started:
            raise RuntimeError("the application did not start; its lifespan failed")
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=15)
        listener.close()
        if thread.is_alive():
            raise RuntimeError("the application did not stop")


class _ReportingServer(uvicorn.Server):
    """Tells another thread when start-up has ended, well or badly."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        finally:
            self.ready.set()
