"""HTTP endpoints of the radix tree: trajectories given back and forgotten, the tree's outline and counters.

Trajectories come as JSON, or, where a request accepts `application/octet-stream`, as raw arrays behind a
small JSON header (see `buffers`); errors are always JSON. `docs/trajectories.md` shows each of them.
"""

from array import array
from collections.abc import Callable
from typing import Annotated, TypeVar

import msgspec
from fastapi import APIRouter, Query, Request, Response

from ..errors import BadRequest
from .buffers import Buffer, write_buffers
from .outline import OutlineLimits
from .reports import NO_LOGPROB, SessionReport, arrays_of, report_trajectory
from .trajectories import RetrieveIdsRequest, RetrieveRequest, Trajectories, Trajectory

JSON = "application/json"
BUFFERS = "application/octet-stream"

METADATA_NAME = "espalier"
"""Where the header of a reply in buffers has the rest of the reply, as JSON."""

PAGE_TRAJECTORIES = 16
MAX_PAGE_TRAJECTORIES = 256
"""Trajectories a page; see `reports.MAX_PAGE_TOKENS` too."""

OUTLINE_NODES = 100
MAX_OUTLINE_NODES = 500
OUTLINE_DEPTH = 8
MAX_OUTLINE_DEPTH = 32
MAX_PREVIEW_TOKENS = 32
"""What a person can still read."""

_encode = msgspec.json.Encoder().encode
_decode_retrieve = msgspec.json.Decoder(RetrieveRequest).decode
_decode_retrieve_ids = msgspec.json.Decoder(RetrieveIdsRequest).decode

_Body = TypeVar("_Body")


def trajectory_routes(trajectories: Trajectories) -> APIRouter:
    """Return the router with the endpoints."""
    router = APIRouter(tags=["radix tree"])
    _add_retrieval(router, trajectories)
    _add_trajectories(router, trajectories)
    _add_sessions(router, trajectories)
    _add_tree(router, trajectories)
    return router


def _add_retrieval(router: APIRouter, trajectories: Trajectories) -> None:
    @router.post("/retrieve_from_text", summary="Tokens, mask and log-probabilities of a recorded text")
    async def retrieve_from_text(request: Request) -> Response:
        body = await _body_of(request, _decode_retrieve)
        return _told(request, await trajectories.retrieve(body))

    @router.post("/retrieve_from_ids", summary="Mask and log-probabilities of recorded token ids")
    async def retrieve_from_ids(request: Request) -> Response:
        body = await _body_of(request, _decode_retrieve_ids)
        return _told(request, await trajectories.retrieve_ids(body))


def _add_trajectories(router: APIRouter, trajectories: Trajectories) -> None:
    @router.get("/trajectories/{rid:path}", summary="A trajectory by its request id, segment by segment")
    async def show(rid: str, request: Request) -> Response:
        generation = trajectories.find(rid)
        accepts = _accepts_buffers(request)
        report = report_trajectory(trajectories.tree, generation, with_arrays=not accepts)
        return _buffers(arrays_of(generation), report) if accepts else _json(report)

    @router.delete("/trajectories/{rid:path}", summary="Forget a trajectory")
    async def forget(rid: str) -> Response:
        trajectories.forget(rid)
        return _json({"deleted": 1})


def _add_sessions(router: APIRouter, trajectories: Trajectories) -> None:
    @router.get("/sessions/{session_id:path}/trajectories", summary="A session's trajectories, in pages")
    async def show(
        session_id: str,
        request: Request,
        *,
        after: Annotated[int, Query(ge=0)] = 0,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE_TRAJECTORIES)] = PAGE_TRAJECTORIES,
        leaves: Annotated[bool, Query()] = False,
    ) -> Response:
        page = trajectories.page(session_id, after=after, limit=limit, leaves=leaves)
        accepts = _accepts_buffers(request)
        report = SessionReport(
            session_id=session_id,
            total=page.total,
            trajectories=[
                report_trajectory(trajectories.tree, each, with_arrays=not accepts)
                for each in page.generations
            ],
            next=page.next,
        )
        if not accepts:
            return _json(report)
        arrays = {
            f"{at}.{name}": values
            for at, each in enumerate(page.generations)
            for name, values in arrays_of(each).items()
        }
        return _buffers(arrays, report)

    @router.delete("/sessions/{session_id:path}/trajectories", summary="Forget a session's trajectories")
    async def forget(session_id: str) -> Response:
        return _json({"deleted": trajectories.forget_session(session_id)})


def _add_tree(router: APIRouter, trajectories: Trajectories) -> None:
    @router.get("/radix_tree", summary="The tree's top, for people")
    async def outline(
        nodes: Annotated[int, Query(ge=1, le=MAX_OUTLINE_NODES)] = OUTLINE_NODES,
        depth: Annotated[int, Query(ge=1, le=MAX_OUTLINE_DEPTH)] = OUTLINE_DEPTH,
        preview_tokens: Annotated[int, Query(ge=0, le=MAX_PREVIEW_TOKENS)] = 0,
    ) -> Response:
        limits = OutlineLimits(nodes=nodes, depth=depth, preview_tokens=preview_tokens)
        outline = await trajectories.outline(limits)
        return Response(msgspec.json.format(_encode(outline)), media_type=JSON)

    @router.get("/radix_tree/stats", summary="Counters of the radix tree")
    async def stats() -> Response:
        return _json(dict(trajectories.stats()))


async def _body_of(request: Request, decode: Callable[[bytes], _Body]) -> _Body:
    """Return the request's body.

    Raises: BadRequest where it is not what `decode` reads.
    """
    try:
        return decode(await request.body())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"The request body does not fit: {error}") from None


def _told(request: Request, trajectory: Trajectory) -> Response:
    """Return a retrieved trajectory as the request accepts it."""
    if not _accepts_buffers(request):
        return _json(trajectory)
    arrays: dict[str, Buffer] = {
        "tokens": array("i", trajectory.tokens),
        "loss_mask": array("B", trajectory.loss_mask),
    }
    if isinstance(trajectory.rollout_logp, list):
        pairs = zip(trajectory.rollout_logp, trajectory.loss_mask, strict=True)
        arrays["logprobs"] = array("d", [each if mask else NO_LOGPROB for each, mask in pairs])
    rest = {
        name: value for name, value in msgspec.structs.asdict(trajectory).items() if name not in _IN_ARRAYS
    }
    return _buffers(arrays, rest)


_IN_ARRAYS = frozenset({"tokens", "loss_mask", "rollout_logp"})
"""Fields of `Trajectory` that arrays take the place of."""


def _accepts_buffers(request: Request) -> bool:
    accepted = request.headers.get("accept", "").split(",")
    return any(each.partition(";")[0].strip().lower() == BUFFERS for each in accepted)


def _json(value: object) -> Response:
    return Response(_encode(value), media_type=JSON)


def _buffers(arrays: dict[str, Buffer], rest: object) -> Response:
    return Response(write_buffers(arrays, {METADATA_NAME: _encode(rest).decode()}), media_type=BUFFERS)
