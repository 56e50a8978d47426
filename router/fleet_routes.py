"""The endpoints of the fleet: SGLang's control paths, each one answered by every worker."""

from fastapi import APIRouter, Request, Response

from ..calls import Call
from .fleet import FLEET_PATHS, Fleet
from .headers import end_to_end_request
from .responses import as_response


def fleet_routes(fleet: Fleet) -> APIRouter:
    """Return one endpoint for each of `FLEET_PATHS`."""
    router = APIRouter(tags=["fleet"])

    async def broadcast(request: Request) -> Response:
        """Send the call to every worker; tell how each one answered."""
        return as_response(await fleet.broadcast(await fleet_call(request)))

    for path in sorted(FLEET_PATHS):
        router.add_api_route(path, broadcast, methods=["POST"], operation_id=path.strip("/"))
    router.add_api_route("/flush_cache", broadcast, methods=["GET"], operation_id="flush_cache_by_get")
    return router


async def fleet_call(request: Request) -> Call:
    """Return a request to the router as the call that goes to workers."""
    path, query = request.url.path, request.url.query
    return Call(
        method=request.method,
        path=path,
        target=f"{path}?{query}".encode() if query else path.encode(),
        headers=end_to_end_request(request.headers.raw),
        body=await request.body(),
        request_id=request.headers.get("x-request-id", ""),
    )
