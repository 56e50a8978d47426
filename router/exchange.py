"""A request and the way back to its client, as the data plane sees them.

There are two kinds: `AsgiExchange`, for any ASGI server and for what uvicorn had better take apart itself,
and `WireExchange`, straight from uvicorn's parser, for everything that is plain.
"""

from typing import Final, Protocol

from ..calls import Headers, Reply
from ..errors import PayloadTooLarge
from .headers import BODILESS_STATUS
from .ledger import CallRecord
from .request_id import REQUEST_ID_HEADER


class Exchange(Protocol):
    """One request. Its client may hang up at any time: then the task that serves it is cancelled."""

    record: CallRecord
    """What happened to it so far; `write` notes what goes out."""

    @property
    def path(self) -> str:
        """The path, decoded."""
        ...

    @property
    def target(self) -> bytes:
        """The path as it came, with the query."""
        ...

    @property
    def headers(self) -> Headers:
        """The request's header fields, hop-by-hop ones included."""
        ...

    @property
    def has_hung_up(self) -> bool:
        """Whether the client has left before its reply was complete."""
        ...

    async def read_body(self, max_bytes: int) -> bytes | None:
        """Return the whole body; None where the client hung up before.

        Raises: PayloadTooLarge, as soon as that is known.
        """
        ...

    def watch(self) -> None:
        """From now on, cancel the current task when the client hangs up."""
        ...

    def unwatch(self) -> None:
        """Leave the task alone again."""
        ...

    async def write(self, reply: Reply) -> None:
        """Send a reply, no faster than the client takes it.

        Raises: UpstreamError where the worker breaks off its body.
        """
        ...

    def break_off(self) -> None:
        """Let the client see that what it got is not the whole reply."""
        ...


def too_large(max_bytes: int) -> PayloadTooLarge:
    """Return the error that tells a client of the limit."""
    return PayloadTooLarge(f"The request body is over {max_bytes} bytes; --max-payload-size raises the limit")


def declared_size(headers: Headers) -> int:
    """Return the Content-Length of a request in bytes, 0 where it has none."""
    for name, value in headers:
        if name == b"content-length":
            return int(value)
    return 0


def told_headers(reply: Reply, record: CallRecord) -> Headers:
    """Return the fields of a reply's head: the call's request id, and the length wherever it is known.

    A length that the worker gave is kept for HEAD and for streams; a whole body's is counted.
    """
    is_bodiless = reply.status in BODILESS_STATUS
    is_whole = isinstance(reply.body, bytes) and record.method != "HEAD"
    dropped = _REWRITTEN if is_bodiless or is_whole else _ECHOED
    headers = [field for field in reply.headers if field[0] not in dropped]
    headers.append((REQUEST_ID_HEADER, record.request_id))
    if is_whole and not is_bodiless:
        headers.append((b"content-length", b"%d" % len(reply.body)))  # type: ignore[arg-type]  # it is whole
    return headers


_ECHOED: Final = frozenset({REQUEST_ID_HEADER})
_REWRITTEN: Final = _ECHOED | {b"content-length"}
"""What a reply's head tells in our words."""
