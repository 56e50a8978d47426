"""Plug-ins that tests name by import path."""

from collections.abc import Mapping

from fastapi import APIRouter

from espalier.calls import Call, Handler, MiddlewareBase, Reply
from espalier.errors import ConfigError

life: list[str] = []
"""What `Outer` and `Inner` have been through."""


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
        return {"shouted_total": self.shouted, "loudness": 11}

    def routes(self) -> APIRouter:
        router = APIRouter()

        @router.get("/shouted")
        async def shouted() -> dict[str, int]:
            return {"shouted": self.shouted}

        return router


class Naming(MiddlewareBase):
    """Tells the call's request id, and fails where the body is no JSON object."""

    async def __call__(self, call: Call, _: Handler) -> Reply:
        return Reply.of_json({"request_id": call.request_id, "said": call.json()})


class Dropping(MiddlewareBase):
    """Forgets the reply that it got."""

    async def __call__(self, call: Call, forward: Handler) -> Reply:
        await forward(call)
        raise ZeroDivisionError


class Outer(MiddlewareBase):
    """Notes when it starts and closes, and what the worker says to it by then."""

    name = "outer"

    async def start(self, forward: Handler) -> None:
        asked = Call(method="GET", path="/a", target=b"/a", headers=[], body=b"", request_id=self.name)
        reply = await forward(asked)
        life.append(f"{self.name} starts, told {(await reply.read()).decode()}")

    async def __call__(self, call: Call, forward: Handler) -> Reply:
        life.append(f"{self.name} is called")
        return await forward(call)

    async def aclose(self) -> None:
        life.append(f"{self.name} closes")


class Inner(Outer):
    """The same, by another name."""

    name = "inner"


class Sized(MiddlewareBase):
    """Cannot be made without a size, nor with one below 0."""

    def __init__(self, *, size: int) -> None:
        if size < 0:
            raise ValueError("size is below 0")

    async def __call__(self, call: Call, forward: Handler) -> Reply:
        return await forward(call)


class Halfway:
    """No middleware: all but `__call__` is missing."""

    async def __call__(self, call: Call, forward: Handler) -> Reply:
        return await forward(call)


class Aimless:
    """No policy: it cannot choose."""


class Balanced:
    """A policy that only tells which thresholds it was given."""

    def __init__(self, *, balance_abs_threshold: int, balance_rel_threshold: float) -> None:
        raise ConfigError(f"told {balance_abs_threshold} and {balance_rel_threshold}")


class Unready(MiddlewareBase):
    """Cannot start."""

    async def start(self, _: Handler) -> None:
        raise ConfigError("not today")

    async def __call__(self, call: Call, forward: Handler) -> Reply:
        return await forward(call)


class Miscounting(MiddlewareBase):
    """Fails when it is asked for its figures."""

    async def __call__(self, call: Call, forward: Handler) -> Reply:
        return await forward(call)

    def stats(self) -> Mapping[str, float]:
        raise RuntimeError("lost count")


class Clashing(MiddlewareBase):
    """Names its figures as the router does, or as nobody may."""

    async def __call__(self, call: Call, forward: Handler) -> Reply:
        return await forward(call)

    def stats(self) -> Mapping[str, float]:
        return {"in_flight": 99, "not a name": 1, "fine": 1}
