"""What a worker tells of itself, for routers that ask before they send anything.

It is taken from a simulated worker.
"""

import sys
import time
from http.client import HTTPConnection
from pathlib import Path
from typing import Final

from .processes import free_port, running

PATHS: Final = (
    "/health",
    "/ready",
    "/ping",
    "/model_info",
    "/get_model_info",
    "/server_info",
    "/get_server_info",
    "/v1/models",
    "/v1/loads",
)

_STARTS_WITHIN_S: Final = 30


def worker_answers(folder: Path) -> dict[str, bytes]:
    """Return the bodies that the simulated worker answers to GET on `PATHS`."""
    port = free_port()
    command = [sys.executable, "-m", "espalier", "worker", "--host", "127.0.0.1", "--port", str(port)]
    log = folder / "simulated-worker.log"
    with running(command, core=0, log=log) as worker:
        deadline_s = time.monotonic() + _STARTS_WITHIN_S
        while time.monotonic() < deadline_s and not worker.has_ended:
            try:
                return {path: _get(port, path) for path in PATHS}
            except OSError:
                time.sleep(0.05)
        raise RuntimeError(f"the simulated worker does not answer:\n{worker.last_words()}")


def _get(port: int, path: str) -> bytes:
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        reply = connection.getresponse()
        body = reply.read()
    finally:
        connection.close()
    if reply.status != 200:
        raise RuntimeError(f"the simulated worker answers {reply.status} to GET {path}")
    return body
