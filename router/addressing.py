"""Which workers a control call is for, and what each of them is sent.

All workers get it, or those that `?worker=<id or URL>` names; the parameter may be repeated and does not go
on to the workers. All get the same body, or bodies of their own: a JSON body with a member `workers` sends
each worker the other members, and what `workers` holds under its id or URL over them:

    {"master_address": "10.0.0.9", "world_size": 3,
     "workers": {"http://10.0.0.1:30001": {"rank_offset": 1}, "http://10.0.0.2:30001": {"rank_offset": 2}}}
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from urllib.parse import unquote_plus

from ..calls import Call, JsonObject
from ..errors import BadRequest, NotFound, NoWorkerAvailable
from .workers import Worker, WorkerPool

OVERLAY = "workers"
"""The member of a body that holds what single workers are sent besides."""

_OVERLAY_KEY = b'"workers"'

ENGINE = "sglang"
"""What serves behind every worker; SMG's selectors ask for it."""

_SELECTABLE: Mapping[str, Callable[[Worker], str]] = MappingProxyType(
    {
        "engine": lambda _: ENGINE,
        "id": lambda worker: worker.id,
        "url": lambda worker: worker.url,
        "worker_type": lambda worker: worker.worker_type,
    }
)


def without_parameters(query: bytes, *names: str) -> bytes:
    """Return `query` without the parameters called `names`, the others byte for byte."""
    return b"&".join(
        part
        for part in query.split(b"&")
        if unquote_plus(part.partition(b"=")[0].decode("latin-1")) not in names
    )


def chosen_workers(pool: WorkerPool, selectors: Sequence[str]) -> list[Worker]:
    """Return the workers that `selectors` name by id or URL, each once; all where there are none.

    Raises: NotFound where one names no worker; NoWorkerAvailable where there are no workers at all.
    """
    if selectors:
        return list(dict.fromkeys(pool.find(selector) for selector in selectors))
    if not len(pool):
        raise NoWorkerAvailable("There are no workers. Add one: POST /add_worker?url=http://host:port")
    return list(pool)


def selected_workers(pool: WorkerPool, selectors: Sequence[str]) -> list[Worker]:
    """Return the workers that all of SMG's `selectors` fit, such as `engine=sglang` or `id=…,url=…`.

    Raises: BadRequest where one cannot be read; NotFound where no worker fits; NoWorkerAvailable where there
    are no workers at all.
    """
    workers = chosen_workers(pool, [])
    for term in (term for selector in selectors for term in selector.split(",") if term):
        key, equals, value = term.partition("=")
        if not equals or key not in _SELECTABLE:
            raise BadRequest(
                f"selector {term!r}: expected KEY=VALUE; known keys are {', '.join(_SELECTABLE)}"
            )
        workers = [worker for worker in workers if _SELECTABLE[key](worker) == value]
    if not workers:
        raise NotFound(f"No worker fits the selector {','.join(selectors)!r}; GET /workers lists them")
    return workers


def addressed(call: Call, workers: Sequence[Worker], pool: WorkerPool) -> list[tuple[Worker, Call]]:
    """Return the call that each of `workers` is sent: one for all, unless the body has an overlay.

    Raises: BadRequest where the overlay is malformed or names a worker that is not asked; NotFound where it
    names none.
    """
    overlay = _overlay(call)
    if overlay is None:
        return [(worker, call) for worker in workers]
    common, by_name = overlay
    own: dict[Worker, JsonObject] = {}
    for name, members in by_name.items():
        worker = pool.find(name)
        if worker not in workers:
            raise BadRequest(f"workers: {name!r} is given a body, but ?worker= does not name it")
        own[worker] = own.get(worker, {}) | members
    return [(worker, call.with_json(common | own.get(worker, {}))) for worker in workers]


def _overlay(call: Call) -> tuple[JsonObject, dict[str, JsonObject]] | None:
    """Return the members that all are sent and those of each; None where the body has no overlay.

    Most bodies have none, and those with tensors are large: only one that may have it is parsed.
    """
    if _OVERLAY_KEY not in call.body:
        return None
    body = call.json()
    if OVERLAY not in body:
        return None
    by_name = body[OVERLAY]
    if not isinstance(by_name, dict) or not all(isinstance(each, dict) for each in by_name.values()):
        raise BadRequest('workers: expected an object of objects, {"<worker id or URL>": {…}}')
    return {key: value for key, value in body.items() if key != OVERLAY}, by_name
