"""A middleware that stands next to the workers and keeps what they read and said."""

import json
from typing import Any

from espalier.calls import Call, Handler, MiddlewareBase, Reply


class Witness(MiddlewareBase):
    """Keeps the `/generate` bodies that workers got, and their replies, by the replies' request ids."""

    def __init__(self) -> None:
        self.asked: dict[str, dict[str, Any]] = {}
        self.said: dict[str, dict[str, Any]] = {}
        latest.append(self)

    async def __call__(self, call: Call, forward: Handler) -> Reply:
        reply = await forward(call)
        is_json = (reply.header(b"content-type") or b"").startswith(b"application/json")
        if call.path == "/generate" and reply.status == 200 and is_json:
            said = json.loads(await reply.read())
            rid = said["meta_info"]["id"]
            self.asked[rid], self.said[rid] = json.loads(call.body), said
        return reply

    def read_and_sampled(self, rid: str) -> list[int]:
        """Return the token ids that a worker read for a call, and those it sampled."""
        return [*self.asked[rid]["input_ids"], *self.said[rid]["output_ids"]]

    def logprobs(self, rid: str) -> list[float]:
        """Return the log-probabilities that a worker gave for a call, in nats."""
        return [entry[0] for entry in self.said[rid]["meta_info"]["output_token_logprobs"]]


latest: list[Witness] = []
"""Every witness made in this process, the newest last: tests name the class, the router makes it."""
