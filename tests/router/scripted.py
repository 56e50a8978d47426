"""A worker that does exactly what a test says, over a real socket, one thread a connection."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

Script = Callable[[socket.socket, bytes], bool]
"""Answers one request (its bytes are given) on the socket; returns whether to wait for another one."""


@contextlib.contextmanager
def scripted_worker(script: Script, listener: socket.socket | None = None) -> Iterator[str]:
    """Run `script` for every request until the block ends; yields the worker's URL.

    It listens on `listener`, where one is given, else on any free port.
    """
    listener = listener or socket.create_server(("127.0.0.1", 0))
    listener.listen(128)
    open_sockets: list[socket.socket] = []

    def serve(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            while (request := read_request(client)) and script(client, request):
                pass

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            open_sockets.append(client)
            threading.Thread(target=serve, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for client in open_sockets:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)


def read_request(client: socket.socket) -> bytes:
    """Return one whole request, or nothing where the peer has closed."""
    received = b""
    while b"\r\n\r\n" not in received:
        chunk = client.recv(65536)
        if not chunk:
            return b""
        received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    whole = bytearray(head + b"\r\n\r\n" + body)
    missing = length - len(body)
    while missing > 0:
        chunk = client.recv(1 << 20)
        if not chunk:
            return b""
        whole += chunk
        missing -= len(chunk)
    return bytes(whole)


def reply(body: bytes = b"{}", *, status: str = "200 OK", fields: bytes = b"") -> bytes:
    """Return a whole reply with Content-Length."""
    return b"HTTP/1.1 %s\r\n%scontent-length: %d\r\n\r\n%s" % (status.encode(), fields, len(body), body)


def answering(answer: bytes) -> Script:
    """Return a script that always sends `answer` and keeps the connection."""

    def script(client: socket.socket, request: bytes) -> bool:
        client.sendall(answer)
        return True

    return script
