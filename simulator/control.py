"""The endpoints that command a worker: abort, pause, weights, cache, health."""

import asyncio
from pathlib import Path

from .asgi import Reply, Request, json_reply, text_reply
from .bodies import field, read_object
from .requests import FormError
from .scheduler import PauseMode
from .worker import Worker

FLUSHED = (
    "Cache flushed.\nPlease check backend logs for more details. (When there are running or waiting requests,"
    " the operation will not be performed.)\n"
)
NOT_FLUSHED = "Flush cache failed.\n"
UPDATED_NOT_FLUSHED = (
    "Weights were updated, but the cache was not flushed because requests are still running or queued."
    " Retract or finish them, then call /flush_cache."
)


class ControlEndpoints:
    """Answers the calls that change what a worker does."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._scheduler = worker.scheduler

    async def abort_request(self, request: Request) -> Reply:
        """End the generations of a rid, or all of them. An unknown rid is no error."""
        body = await read_object(request)
        rid: str = field(body, "rid", str, "")
        if field(body, "abort_all", bool, default=False):
            self._scheduler.abort_all()
        elif rid:
            self._scheduler.abort(rid)
        return Reply()

    async def pause_generation(self, request: Request) -> Reply:
        """Stop sampling."""
        mode: str = field(await read_object(request), "mode", str, PauseMode.ABORT.value)
        if mode not in set(PauseMode):
            raise FormError("literal_error", "mode: Input should be 'abort', 'retract' or 'in_place'")
        self._scheduler.pause(PauseMode(mode))
        return json_reply({"message": "Generation paused successfully.", "status": "ok"})

    async def continue_generation(self, request: Request) -> Reply:
        """Sample on."""
        await read_object(request)
        self._scheduler.resume()
        return json_reply({"message": "Generation continued successfully.", "status": "ok"})

    async def flush_cache(self, request: Request) -> Reply:
        """Forget what is cached, where nothing runs; `timeout` seconds are waited for that."""
        await request.body()
        try:
            timeout_s = float(request.query.get("timeout", "0"))
        except ValueError:
            raise FormError("float_parsing", "timeout: Input should be a valid number") from None
        if timeout_s > 0 and not await self._scheduler.wait_until_idle(timeout_s):
            return text_reply("Timed out waiting for idle state.\n", 400)
        return text_reply(FLUSHED) if self._scheduler.flush_cache() else text_reply(NOT_FLUSHED, 400)

    async def update_weights_from_disk(self, request: Request) -> Reply:
        """Change the weights; the version's name stays where none is given."""
        body = await read_object(request)
        path: str = field(body, "model_path", str)
        version: str | None = field(body, "weight_version", str, None)
        flush: bool = field(body, "flush_cache", bool, default=True)
        worker = self._worker
        if worker.settings.check_model_path and not Path(path).is_dir():  # noqa: ASYNC240  one look
            message = f"Failed to get weights iterator: {path!r} is not a folder."
            return json_reply({"success": False, "message": message, "num_paused_requests": 0}, 400)
        if field(body, "abort_all_requests", bool, default=False):
            self._scheduler.abort_all()
        await self._scheduler.change_weights(version or worker.weight_version)
        worker.model_path = worker.served_model_name = path
        worker.weight_version = version or worker.weight_version
        if flush and not self._scheduler.flush_cache():
            return json_reply(
                {"success": False, "message": UPDATED_NOT_FLUSHED, "num_paused_requests": 0}, 400
            )
        message = "Succeeded to update model weights."
        if version is not None:
            message += f" Weight version updated to {version}."
        return json_reply({"success": True, "message": message, "num_paused_requests": 0})

    async def update_weight_version(self, request: Request) -> Reply:
        """Change the weights' name only; running generations end first unless told otherwise."""
        body = await read_object(request)
        version: str = field(body, "new_version", str)
        if field(body, "abort_all_requests", bool, default=True):
            self._scheduler.abort_all()
        self._scheduler.rename_weights(version)
        self._worker.weight_version = version
        return json_reply(
            {"success": True, "message": f"Weight version updated to {version}", "new_version": version}
        )

    async def health(self, request: Request) -> Reply:
        """Look for a sign of life: takes `health_probe_s`, or up to `health_timeout_s` while paused."""
        await request.body()
        worker = self._worker
        if worker.is_draining:
            return Reply(status=503)
        alive = True
        if self._scheduler.is_paused:
            alive = await self._scheduler.sign_of_life(worker.settings.health_timeout_s)
        else:
            await asyncio.sleep(worker.settings.health_probe_s)
        worker.is_unhealthy = not alive
        return Reply(status=200 if alive and not worker.is_draining else 503)

    async def ready(self, request: Request) -> Reply:
        """Tell at once whether calls are served."""
        await request.body()
        worker = self._worker
        serves = not (self._scheduler.is_paused or worker.is_draining or worker.is_unhealthy)
        return Reply(status=200 if serves else 503)

    async def ping(self, request: Request) -> Reply:
        """Tell at once whether the last sign of life was there."""
        await request.body()
        return Reply(status=503 if self._worker.is_unhealthy else 200)
