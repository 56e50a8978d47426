"""Takes calls to one worker that is named in their path, there as they are.

    /workers/<id or percent-encoded URL>/engine/<path of the worker's>
    /v1/rl/workers/<id or percent-encoded URL>/engine/<path of the worker's>

No policy, no middleware, no retry: whoever names a worker means this one, whatever its state.
"""

from typing import Final
from urllib.parse import unquote

import msgspec

from ..calls import Call, Reply
from ..errors import NotFound
from .fleet import Fleet, answer_of
from .upstream import Upstream
from .workers import WorkerPool

PREFIXES: Final = (b"/v1/rl/workers/", b"/workers/")
"""What stands before the worker's name."""

_ENGINE: Final = b"/engine/"


class EngineGate:
    """The handler of these calls."""

    def __init__(self, pool: WorkerPool, fleet: Fleet, upstream: Upstream) -> None:
        self._pool = pool
        self._fleet = fleet
        self._upstream = upstream

    async def __call__(self, call: Call) -> Reply:
        """Return the named worker's reply, streams as they come.

        The pool is told what a control call changed, as if it had gone to all workers.

        Raises: NotFound, UpstreamError, UpstreamTimeout.
        """
        name, target = split_target(call.target)
        worker = self._pool.find(name)
        path = unquote(target.partition(b"?")[0].decode("latin-1"))
        onward = msgspec.structs.replace(call, path=path, target=target)
        reply = await self._upstream.send(worker.origin, onward)
        if isinstance(reply.body, bytes):
            await self._fleet.note(answer_of(worker, reply.status, reply.body), onward)
        return reply


def split_target(target: bytes) -> tuple[str, bytes]:
    """Return the worker's name and the worker's own target, which are joined in `target`.

    Raises: NotFound where it has no such parts.
    """
    path = target.partition(b"?")[0]
    for prefix in PREFIXES:
        if path.startswith(prefix) and _ENGINE in path:
            end = path.index(_ENGINE)
            name = unquote(path[len(prefix) : end].decode("latin-1"))
            return name, target[end + len(_ENGINE) - 1 :]
    raise NotFound(f"There is no {path.decode('latin-1')!r} here")
