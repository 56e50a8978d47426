"""Which header fields end at a hop, and how a request head is written.

Source: RFC 9110 section 7.6.1 (Connection), RFC 9112 (message syntax).
"""

from typing import Final

from ..calls import Headers

BODILESS_STATUS: Final = frozenset({204, 304})
"""Replies of these have no body, whatever their headers say."""

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Meant for the next hop only; what `Connection` names besides is dropped as well."""

_REQUEST_DROPPED = HOP_BY_HOP | {b"host", b"content-length", b"expect"}
"""Written anew for the worker, or answered by us (Expect: 100-continue)."""

_PLAIN_CONNECTION = frozenset({b"keep-alive", b"close"})


def end_to_end_request(headers: Headers) -> Headers:
    """Return what is sent on of a request's fields, in order, duplicates kept."""
    return _without(headers, _REQUEST_DROPPED)


def end_to_end_reply(headers: Headers) -> Headers:
    """Return what is sent on of a reply's fields, in order, duplicates kept."""
    return _without(headers, HOP_BY_HOP)


def request_head(method: str, target: bytes, authority: bytes, headers: Headers, body_size: int) -> bytes:
    """Return the request line and the header section of an HTTP/1.1 request.

    `headers` are end-to-end fields; Host and Content-Length (bytes; left out for a bodiless GET or HEAD)
    are added.
    """
    lines = [b"%s %s HTTP/1.1\r\nhost: %s\r\n" % (method.encode("ascii"), target, authority)]
    lines.extend([b"%s: %s\r\n" % field for field in headers])
    if body_size or method not in ("GET", "HEAD", "OPTIONS", "DELETE"):
        lines.append(b"content-length: %d\r\n" % body_size)
    lines.append(b"\r\n")
    return b"".join(lines)


def _without(headers: Headers, dropped: frozenset[bytes]) -> Headers:
    for name, value in headers:
        if name == b"connection" and value.lower() not in _PLAIN_CONNECTION:
            dropped = dropped | {part.strip().lower() for part in value.split(b",")}
    return [field for field in headers if field[0] not in dropped]
