"""A middleware: caps how many tokens a call may ask for, whatever the client says.

espalier router --middleware examples.plugins.middleware:TokenCap …
"""

from collections.abc import Mapping
from typing import Any

from espalier.calls import Call, Handler, MiddlewareBase, Reply


class TokenCap(MiddlewareBase):
    """Lowers `max_new_tokens` of `/generate`; counts the requests that asked for more, or for no limit."""

    def __init__(self, max_new_tokens: int = 1024) -> None:
        self._max_new_tokens = max_new_tokens
        self._capped = 0

    async def __call__(self, call: Call, forward: Handler) -> Reply:
        """Forward the call, with a lower limit if need be."""
        if call.path == "/generate":
            body = call.json()  # shared by all middleware: make a new one, do not change it
            params = body.get("sampling_params") or {}
            capped = [self._cap(each) for each in params] if isinstance(params, list) else self._cap(params)
            call = call.with_json({**body, "sampling_params": capped})
        return await forward(call)

    def _cap(self, params: dict[str, Any]) -> dict[str, Any]:
        asked = params.get("max_new_tokens")
        if isinstance(asked, int) and asked <= self._max_new_tokens:
            return params
        self._capped += 1
        return {**params, "max_new_tokens": self._max_new_tokens}

    def stats(self) -> Mapping[str, float]:
        """Return what `/metrics` shows."""
        return {"token_cap_capped_total": self._capped}
