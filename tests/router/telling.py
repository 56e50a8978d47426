"""A worker that answers probes as it is told."""

import socket
from collections.abc import Mapping

from tests.router.scripted import reply


class Telling:
    """A worker that answers each path as told (else 404), and keeps what it was asked for."""

    def __init__(self, **replies: bytes) -> None:
        self.replies: Mapping[str, bytes] = {f"/{path}": answer for path, answer in replies.items()}
        self.asked: list[str] = []

    def __call__(self, client: socket.socket, request: bytes) -> bool:
        path = request.split(b" ")[1].decode()
        self.asked.append(path)
        client.sendall(self.replies.get(path, reply(status="404 Not Found")))
        return True


OK, UNREADY = reply(b""), reply(b"", status="503 Service Unavailable")


def versioned(version: str) -> bytes:
    return reply(b'{"weight_version": "%s"}' % version.encode())
