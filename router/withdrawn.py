"""What a call is told that was aborted before it had its turn."""

import msgspec

from ..calls import Call, JsonObject, Reply
from ..errors import BadRequest, Conflict
from .rids import is_one_generation

MESSAGE = "Abort in waiting queue"
"""SGLang's words for the same thing in a worker's own queue."""


def client_rid_of(call: Call) -> str | None:
    """Return the rid that a call brings, or None where it brings none or cannot be read."""
    try:
        rid = call.json().get("rid")
    except BadRequest:
        return None
    return rid if isinstance(rid, str) else None


def withdrawn_reply(call: Call) -> Reply:
    """Return the reply: an aborted generation without a token, as a worker's queue gives it back.

    Calls that SGLang answers otherwise (batches, `n > 1`, OpenAI's endpoints) get a 409.
    """
    try:
        body = call.json()
    except BadRequest as error:
        return Reply.of_error(error)
    if call.path != "/generate" or not is_one_generation(body):
        return Reply.of_error(
            Conflict("The call was aborted while it waited for its turn; nothing was sampled")
        )
    told = _aborted(client_rid_of(call) or call.request_id)
    if not body.get("stream"):
        return Reply.of_json(told)
    events = b"data: %b\n\ndata: [DONE]\n\n" % msgspec.json.encode(told)
    return Reply(status=200, headers=[(b"content-type", b"text/event-stream")], body=events)


def _aborted(rid: str) -> JsonObject:
    return {
        "text": "",
        "output_ids": [],
        "meta_info": {
            "id": rid,
            "finish_reason": {"type": "abort", "message": MESSAGE},
            "input_token_logprobs": [],
            "output_token_logprobs": [],
            "output_token_logprobs_length": 0,
            "completion_tokens": 0,
        },
    }
