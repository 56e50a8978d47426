"""Where a worker listens, read from its URL."""

from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from ..errors import BadRequest


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Origin:
    """Host and port to connect to, the Host field, and a path that every target begins with."""

    host: str
    port: int
    authority: bytes
    prefix: bytes

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read `url`, such as `http://10.0.0.1:30001`.

        Raises: BadRequest where it is no http URL with a host that can be looked up.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
            ascii_host = host.encode("idna").decode("ascii")
        except ValueError as error:
            raise _not_valid(url, str(error)) from None
        is_plain = parts.path.isascii() and not (
            parts.query or parts.fragment or parts.username or parts.password
        )
        if (
            parts.scheme != "http"
            or not host
            or port == 0
            or not is_plain
            or not url.isprintable()
            or " " in url
        ):
            raise _not_valid(url, "expected http://host:port")
        name = f"[{ascii_host}]" if ":" in ascii_host else ascii_host
        authority = name if port is None else f"{name}:{port}"
        return cls(
            host=ascii_host,
            port=80 if port is None else port,
            authority=authority.encode(),
            prefix=parts.path.rstrip("/").encode(),
        )

    def __str__(self) -> str:
        """Write host and port, as errors name them."""
        return self.authority.decode()


def _not_valid(url: str, reason: str) -> BadRequest:
    return BadRequest(f"The worker URL {url!r} is not valid: {reason}")
