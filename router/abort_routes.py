"""`/abort_request`: one name ends one call, wherever it runs; `abort_all` ends everything everywhere.

A worker would match the name by prefix, and would not know it at all, since it knows the call under a name of
ours. So the call is looked up here, and its worker is told the right one. What is not known here may be
somebody's who talks to a worker directly: that is passed on to every worker, as it came.
"""

import asyncio
from typing import Annotated

import msgspec
from fastapi import APIRouter, Request, Response

from ..calls import Call
from ..errors import BadRequest
from .aborts import Aborter
from .admission import Admission
from .fleet import Fleet
from .fleet_routes import fleet_call
from .flights import Flights
from .responses import as_response
from .withdrawn import client_rid_of


class AbortRequest(msgspec.Struct, kw_only=True):
    """Body of `/abort_request`. `prefix` (as miles has it) ends all calls whose rid begins with `rid`."""

    rid: Annotated[str, msgspec.Meta(max_length=4096)] | None = None
    abort_all: bool | None = None
    prefix: bool | None = None


_decode = msgspec.json.Decoder(AbortRequest).decode


def abort_routes(fleet: Fleet, flights: Flights, aborter: Aborter, admission: Admission | None) -> APIRouter:
    """Return `POST /abort_request`, for calls at workers and for those that wait for `admission`."""
    router = APIRouter(tags=["fleet"])
    loop = asyncio.get_running_loop

    @router.post("/abort_request", operation_id="abort_request")
    async def abort(request: Request) -> Response:
        """End generations: `{"rid"}`, `{"rid", "prefix": true}` or `{"abort_all": true}`.

        By rid the reply is 200 and empty, for one that nobody knows too, as a worker's. With `abort_all` it
        tells how each worker answered.
        """
        try:
            asked = _decode(await request.body() or b"{}")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadRequest(f'Abort what? Give {{"rid": …}} or {{"abort_all": true}}: {error}') from None
        if asked.abort_all:
            for flight in flights:
                flight.is_aborted = True
            if admission is not None:
                admission.withdraw(lambda _: True)
            return as_response(await fleet.broadcast(await fleet_call(request)))
        if not asked.rid:
            return Response()
        targets = flights.find_beginning(asked.rid) if asked.prefix else flights.find(asked.rid)
        heard = []
        for flight, rids in targets:
            flight.is_aborted = True
            if flight.worker is not None and rids:
                age_s = loop().time() - flight.sent_at_s
                heard.append(aborter.abort(flight.worker.origin, rids, age_s=age_s, cause="asked_for"))
        withdrawn = admission.withdraw(lambda call: _is_meant(asked, call)) if admission is not None else 0
        if heard:
            await asyncio.wait(heard)
        elif not targets and not withdrawn:
            await fleet.broadcast(await fleet_call(request))
        return Response()

    return router


def _is_meant(asked: AbortRequest, call: Call) -> bool:
    rid = client_rid_of(call)
    if rid is None or asked.rid is None:
        return False
    return rid.startswith(asked.rid) if asked.prefix else rid == asked.rid
