"""One name for a call in every log it passes: the client's own, or one that is made here.

The name travels on to the worker and back to the client, so that whoever misses a reply can find its call.
"""

import itertools
import re
import secrets
from collections.abc import Sequence
from operator import itemgetter
from typing import Final

from ..calls import Headers

REQUEST_ID_HEADER: Final = b"x-request-id"
"""Where a name is passed on to the worker and back to the client."""

REQUEST_ID_HEADERS: Final = ("x-request-id", "x-correlation-id", "x-trace-id", "request-id")
"""Where a client's name for a call is looked for, in this order. Source: SGLang's router."""

MAX_LENGTH: Final = 256
"""Longer names are not taken over: every log line of the call would carry them."""

_is_fit = re.compile(rb"[!-~]{1,%d}" % MAX_LENGTH).fullmatch
"""Visible ASCII: what can stand in a header and in a log."""


class RequestIds:
    """Reads and makes request ids; `header_names` are looked at in order."""

    def __init__(self, header_names: Sequence[str] = REQUEST_ID_HEADERS) -> None:
        self._ranks = {name.lower().encode(): rank for rank, name in enumerate(header_names)}
        self._prefix = secrets.token_hex(6).encode()
        self._numbers = itertools.count(1)

    def of(self, headers: Headers) -> bytes:
        """Return what the client calls a request with these headers, or a new name where it does not."""
        ranks = self._ranks
        told = [(ranks[name], value) for name, value in headers if name in ranks]
        if told:
            for _, value in sorted(told, key=itemgetter(0)):
                if _is_fit(value):
                    return value
        return b"%b-%x" % (self._prefix, next(self._numbers))


def tell_request_id(headers: Headers, request_id: bytes) -> None:
    """Add the request id to `headers`, unless they tell one."""
    for name, _ in headers:
        if name == REQUEST_ID_HEADER:
            return
    headers.append((REQUEST_ID_HEADER, request_id))
