"""How the exchange of a call with a worker fails.

UpstreamError
├── ConnectFailed            nothing was sent
│   ├── ConnectTimeout       504
│   └── OutOfSockets         503, our own lack
├── ConnectionDropped        it may have been sent, and may have begun
└── UpstreamTimeout
├── FirstByteTimeout
└── BetweenBytesTimeout
"""

from ..errors import UpstreamError, UpstreamTimeout


class ConnectFailed(UpstreamError):
    """The worker took no connection: nothing was sent, so the call may go elsewhere."""


class ConnectTimeout(ConnectFailed):
    """The worker neither took the connection nor refused it."""

    status = UpstreamTimeout.status
    code = "connect_timeout"


class OutOfSockets(ConnectFailed):
    """This process or machine has no socket left: it says nothing of the worker."""

    status = 503
    code = "out_of_sockets"


class FirstByteTimeout(UpstreamTimeout):
    """Not a byte of the reply came in time."""

    code = "first_byte_timeout"


class BetweenBytesTimeout(UpstreamTimeout):
    """The reply began and then stood still for too long."""

    code = "between_bytes_timeout"


class ConnectionDropped(UpstreamError):
    """The connection ended before a reply did.

    `reply_begun` tells whether a byte of it had come, `is_stale` whether the connection was an idle one that
    had been closed at its other end.
    """

    def __init__(self, message: str, *, reply_begun: bool) -> None:
        super().__init__(message)
        self.reply_begun = reply_begun
        self.is_stale = False
