"""The error tree: whose fault it is, and what the caller sees.

    EspalierError
    ├── ConfigError            a flag, file or environment variable is wrong      exit 2
    │   └── PluginError        an unknown, ill-typed or failing plug-in           exit 2
    ├── HttpError              ends a call with a status
    │   ├── BadRequest         the client's request cannot be served              400
    │   ├── Unauthorized       no key, or one that is not known here              401
    │   ├── Forbidden          a known key that does not reach this far           403
    │   ├── NotFound           no such worker, trajectory or path                 404
    │   ├── TokenMismatch      token ids and text do not belong together          409
    │   ├── Conflict           something that is under way excludes this          409
    │   ├── QueueTimeout       waited too long to be let in; try again later      408
    │   ├── PayloadTooLarge    the body is over the limit                         413
    │   ├── TooManyCalls       as many wait as may; try again later               429
    │   ├── HeadTooLarge       the request's head is over the limit               431
    │   ├── NoWorkerAvailable  nothing to route to; try again later               503
    │   └── UpstreamError      the worker broke off or spoke no HTTP              502
    │       └── UpstreamTimeout                                                   504
    ├── RolloutError           one sample failed; recorded on it, siblings go on
    └── DataError              a dataset cannot be read (file, line, reason)      exit 2

A body is `{"error": {"message", "type", "code"}}`, the shape that OpenAI's clients read.
"""

from typing import ClassVar

import msgspec


class EspalierError(Exception):
    """Base of every error that Espalier raises on purpose."""


class ConfigError(EspalierError):
    """A setting is wrong. The message names the setting and the fix; the command exits with 2."""


class PluginError(ConfigError):
    """A plug-in is unknown, cannot be imported, or has the wrong signature."""


class DataError(ConfigError):
    """A dataset is missing or malformed. The message names file, line and reason."""


class RolloutError(EspalierError):
    """One sample could not be generated or rewarded. Recorded on the sample; siblings go on."""


class HttpError(EspalierError):
    """Ends a call with a status and a JSON body.

    `retry_after_s`, where it is set, becomes the reply's Retry-After header (whole seconds).
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s
        self.extra_headers: list[tuple[bytes, bytes]] = []

    def body(self) -> bytes:
        """Return the JSON body of the reply."""
        return msgspec.json.encode(
            {"error": {"message": self.message, "type": type(self).__name__, "code": self.code}}
        )

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return the reply's headers, lower-case names."""
        headers = [(b"content-type", b"application/json"), *self.extra_headers]
        if self.retry_after_s is not None:
            headers.append((b"retry-after", str(self.retry_after_s).encode()))
        return headers


class BadRequest(HttpError):
    """The client's request cannot be served as it is."""

    status = 400
    code = "bad_request"


class Unauthorized(HttpError):
    """The client has no key, or one that is not known here. Says how to send one."""

    status = 401
    code = "unauthorized"

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return the reply's headers, lower-case names."""
        return [*super().headers(), (b"www-authenticate", b"Bearer")]


class Forbidden(HttpError):
    """The client's key is good, but not for this."""

    status = 403
    code = "forbidden"


class NotFound(HttpError):
    """There is no such thing here."""

    status = 404
    code = "not_found"


class TokenMismatch(HttpError):
    """Recorded tokens and the caller's tokens or text do not belong together."""

    status = 409
    code = "token_mismatch"


class Conflict(HttpError):
    """Something is under way that excludes this; it can be asked for again afterwards."""

    status = 409
    code = "conflict"


class PayloadTooLarge(HttpError):
    """The request's body is over the limit."""

    status = 413
    code = "payload_too_large"


class QueueTimeout(HttpError):
    """The call waited too long for its turn and was not begun. Carries Retry-After."""

    status = 408
    code = "queue_timeout"


class TooManyCalls(HttpError):
    """As many calls as may wait are waiting already. Carries Retry-After."""

    status = 429
    code = "too_many_calls"


class HeadTooLarge(HttpError):
    """The request's head is over the limit."""

    status = 431
    code = "head_too_large"


class NoWorkerAvailable(HttpError):
    """There is no worker to route to now. Carries Retry-After."""

    status = 503
    code = "no_available_workers"


class UpstreamError(HttpError):
    """A worker refused, broke off, or did not speak HTTP."""

    status = 502
    code = "upstream_error"


class UpstreamTimeout(UpstreamError):
    """A worker did not answer in time."""

    status = 504
    code = "upstream_timeout"
