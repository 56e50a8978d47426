"""A call's prompt as bytes, such that one prompt continues another exactly when its bytes do.

Prompts of `/generate` and `/v1/completions` are not parsed: their JSON, as the client wrote it, is taken as
it stands. That costs microseconds where parsing 25,000 token ids costs half a millisecond. Two clients that
write JSON differently do not share prompts, which one client never notices. The end of a conversation can
only be told by parsing, so chat bodies are parsed.
"""

import re
from typing import Final

import msgspec

from ...calls import Call
from ...errors import BadRequest

MAX_PROMPT_BYTES: Final = 8 << 20
"""What is looked at of a prompt: a million token ids take 6 to 7 MB."""

_CHATS: Final = ("/chat/completions", "/messages")
_FIELD: Final = re.compile(rb'"(?:input_ids|text|prompt)"\s*:\s*(?:(?:\[\s*)?(")|(?:\[\s*){1,2}(?=\d))')
"""A prompt's field, up to the first id, or to the text's quotation mark; a batch's first prompt."""

_encode_json = msgspec.json.Encoder().encode


def prompt_of(call: Call) -> bytes | None:
    """Return the prompt of `call`, the first one of a batch; None where there is none to be found."""
    if call.path.endswith(_CHATS):
        return _conversation(call)
    body = call.body
    field = _FIELD.search(body)
    if field is None:
        return None
    return _ids(body, field.end()) if field[1] is None else _text(body, field.start(1))


def _ids(body: bytes, start: int) -> bytes | None:
    """Return ids, each with a comma behind it: 1 is no beginning of 12."""
    end = body.find(b"]", start)
    if end < 0:
        return None
    return body[start : min(end, start + MAX_PROMPT_BYTES)] + b","


def _text(body: bytes, start: int) -> bytes | None:
    """Return a JSON string without its closing quotation mark."""
    at = start + 1
    while (end := body.find(b'"', at)) >= 0:
        between = body[at:end]
        backslashes = len(between) - len(between.rstrip(b"\\"))
        if backslashes % 2 == 0:
            return body[start : min(end, start + MAX_PROMPT_BYTES)] if end > start + 1 else None
        at = end + 1
    return None


def _conversation(call: Call) -> bytes | None:
    """Return all messages, each with a comma behind it."""
    try:
        messages = call.json().get("messages")
    except BadRequest:
        return None
    if not isinstance(messages, list) or not messages:
        return None
    return _encode_json(messages)[:-1][:MAX_PROMPT_BYTES] + b","
