"""A FastAPI endpoint whose answer comes from another ASGI application.

The endpoint stands in the router's own documentation; what answers it may stream, and see its client hang up.
"""

from fastapi import Response
from starlette.types import ASGIApp, Receive, Scope, Send


class Delegated(Response):
    """Lets `app` answer the request, whose body must not have been read yet."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__()
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        await self._app(scope, receive, send)
