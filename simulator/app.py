"""The ASGI application of a simulated worker: paths, keys, faults, death."""

from collections.abc import Awaitable, Callable

import msgspec

from .asgi import BodyTooLarge, Receive, Reply, Request, Scope, Send, json_reply, sever
from .control import ControlEndpoints
from .error_replies import NOT_FOUND, UNAUTHORIZED, form_error, method_not_allowed, status_error, value_error
from .faults import Fault, decode_fault
from .generate import GenerateEndpoint
from .info import InfoEndpoints
from .misbehaviour import Refuse, Severed, misbehave
from .params import ValueProblem
from .requests import FormError
from .scheduler import QUEUE_FULL
from .settings import WorkerSettings
from .worker import Worker, WorkerDied

Endpoint = Callable[[Request], Awaitable[Reply | None]]

OPEN_PATHS = ("/health", "/ready", "/metrics")
"""What begins so needs no key."""

OWN_PATHS = "/simulator/"
"""Paths of the simulation itself: no fault hits them, and they need no key."""


class WorkerApp:
    """A simulated worker as an ASGI application.

    `on_death` is called with the reason when a request kills the worker; from then on every connection is
    broken off. `refuse` stops listening for some seconds, for the fault of that name.
    """

    def __init__(
        self,
        worker: Worker,
        *,
        on_death: Callable[[str], None] | None = None,
        refuse: Refuse | None = None,
    ) -> None:
        self.worker = worker
        self.refuse = refuse
        self.on_death = on_death
        self._generate = GenerateEndpoint(worker)
        self._routes = self._build_routes()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection's request, as ASGI has it."""
        if scope["type"] == "lifespan":
            await _serve_lifespan(receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"a simulated worker speaks HTTP only, not {scope['type']}")
        request = Request(scope, receive)
        try:
            await self._serve(request, receive, send)
        except WorkerDied as death:
            self.worker.death = str(death)
            if self.on_death is not None:
                self.on_death(str(death))
            await sever(receive, send, abruptly=True)
        except Severed:
            return

    async def _serve(self, request: Request, receive: Receive, send: Send) -> None:
        if self.worker.death is not None:
            await sever(receive, send, abruptly=True)
            return
        fault = None if request.path.startswith(OWN_PATHS) else self.worker.faults.claim(request.path)
        if fault is None:
            reply = await self._answer(request)
            if reply is not None:
                await reply.send(send)
        elif fault.fault == "queue_full":
            reply = await self._answer_full(request)
            if reply is not None:
                await reply.send(send)
        else:
            await misbehave(fault, request, receive, send, answer=self._answer, refuse=self.refuse)

    async def _answer(self, request: Request, endpoint: Endpoint | None = None) -> Reply | None:
        """Return the reply of a well-behaved worker."""
        routes = self._routes.get(request.path)
        if routes is None and request.path.startswith("/v1/models/"):
            routes = self._routes["/v1/models"]
        if not self._is_allowed(request) and routes is not None:
            return UNAUTHORIZED
        if routes is None:
            return NOT_FOUND
        chosen = endpoint or routes.get(request.method)
        if chosen is None:
            return method_not_allowed(list(routes))
        try:
            return await chosen(request)
        except FormError as error:
            return form_error(request.path, error)
        except ValueProblem as error:
            return value_error(str(error))
        except BodyTooLarge:
            return status_error(413, "The request body is too large.")

    async def _answer_full(self, request: Request) -> Reply | None:
        if request.path != "/generate":
            await request.body()
            return status_error(503, QUEUE_FULL)

        async def refuse(request: Request) -> Reply | None:
            return await self._generate(request, refuse=True)

        return await self._answer(request, refuse)

    def _is_allowed(self, request: Request) -> bool:
        key = self.worker.settings.api_key
        if key is None or request.path.startswith((*OPEN_PATHS, OWN_PATHS)):
            return True
        return request.header(b"authorization") == b"Bearer " + key.encode()

    def _build_routes(self) -> dict[str, dict[str, Endpoint]]:
        control, info = ControlEndpoints(self.worker), InfoEndpoints(self.worker)
        health: dict[str, Endpoint] = {"GET": control.health}
        model_info: dict[str, Endpoint] = {"GET": info.model_info}
        server_info: dict[str, Endpoint] = {"GET": info.server_info}
        return {
            "/generate": {"POST": self._generate, "PUT": self._generate},
            "/": {"GET": info.root, "HEAD": info.root},
            "/health": health,
            "/health_generate": health,
            "/ready": {"GET": control.ready},
            "/ping": {"GET": control.ping},
            "/model_info": model_info,
            "/get_model_info": model_info,
            "/server_info": server_info,
            "/get_server_info": server_info,
            "/v1/loads": {"GET": info.loads},
            "/v1/models": {"GET": info.models},
            "/tokenize": {"POST": info.tokenize},
            "/v1/tokenize": {"POST": info.tokenize},
            "/detokenize": {"POST": info.detokenize},
            "/v1/detokenize": {"POST": info.detokenize},
            "/abort_request": {"POST": control.abort_request},
            "/pause_generation": {"POST": control.pause_generation},
            "/continue_generation": {"POST": control.continue_generation},
            "/flush_cache": {"GET": control.flush_cache, "POST": control.flush_cache},
            "/update_weights_from_disk": {"POST": control.update_weights_from_disk},
            "/update_weight_version": {"POST": control.update_weight_version},
            "/simulator/counters": {"GET": self._tell_counters},
            "/simulator/faults": {
                "GET": self._tell_faults,
                "POST": self._add_fault,
                "DELETE": self._clear_faults,
            },
        }

    async def _tell_counters(self, request: Request) -> Reply:
        await request.body()
        counters = self.worker.counters
        rid = request.query.get("rid")
        by_rid = counters.by_rid if rid is None else {rid: counters.by_rid.get(rid)}
        return json_reply({"totals": counters.totals, "rids": by_rid})

    async def _tell_faults(self, request: Request) -> Reply:
        await request.body()
        return json_reply(self.worker.faults.states)

    async def _add_fault(self, request: Request) -> Reply:
        try:
            fault: Fault = decode_fault(await request.body())
            self.worker.faults.add(fault)
        except (msgspec.DecodeError, ValueError) as error:
            return value_error(f"fault: {error}")
        return json_reply(self.worker.faults.states)

    async def _clear_faults(self, request: Request) -> Reply:
        await request.body()
        self.worker.faults.clear()
        return json_reply(self.worker.faults.states)


def create_app(
    settings: WorkerSettings,
    *,
    on_death: Callable[[str], None] | None = None,
    refuse: Refuse | None = None,
) -> WorkerApp:
    """Return a simulated worker as an ASGI application, for uvicorn."""
    return WorkerApp(Worker(settings), on_death=on_death, refuse=refuse)


async def _serve_lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
