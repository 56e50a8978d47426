"""Plug-ins that tests name by import path."""

from collections.abc import Mapping

from fastapi import APIRouter

from espalier.calls import Call, Handler, MiddlewareBase, Reply


class Shouting(MiddlewareBase):
    """Answers in capitals; fails on request."""

    def __init__(self) -> None:
        self.shouted = 0

    async def __call__(self, call: Call, forward: Handler) -> Reply:
        if call.body == b"fail":
            raise ZeroDivisionError
        reply = await forward(call)
        reply.body = (await reply.read()).upper()
        self.shouted += 1
        return reply

    def stats(self) -> Mapping[str, float]:
        return {"shouted_total": self.shouted}

    def routes(self) -> APIRouter:
        router = APIRouter()

        @router.get("/shouted")
        async def shouted() -> dict[str, int]:
            return {"shouted": self.shouted}

        return router
