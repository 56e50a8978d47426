"""The router's connections to workers, by what they are for."""

from .aborts import ABORT_TIMEOUT_S
from .auth import WorkerCredentials, read_keys
from .settings import RouterSettings
from .upstream import Upstream


class Upstreams:
    """One `Upstream` each for calls, for aborts and for control: a full one never holds up another."""

    def __init__(self, settings: RouterSettings) -> None:
        """Make them.

        Raises: ConfigError where the workers' key cannot be used.
        """
        credentials = make_credentials(settings)
        connect_timeout_s = settings.connect_timeout_secs
        self.calls = Upstream(
            connect_timeout_s=connect_timeout_s,
            request_timeout_s=settings.request_timeout_secs,
            first_byte_timeout_s=settings.first_byte_timeout_secs,
            between_bytes_timeout_s=settings.between_bytes_timeout_secs,
            credentials=credentials,
        )
        self.aborts = Upstream(
            connect_timeout_s=connect_timeout_s, request_timeout_s=ABORT_TIMEOUT_S, credentials=credentials
        )
        # None of these connections is kept: a control call must not be sent twice.
        self.control = Upstream(
            connect_timeout_s=connect_timeout_s,
            request_timeout_s=settings.fleet_timeout_secs,
            idle_timeout_s=0.0,
            credentials=credentials,
        )

    def close_idle(self) -> None:
        """Close the connections that nothing uses."""
        for upstream in (self.calls, self.aborts, self.control):
            upstream.close_idle()


def make_credentials(settings: RouterSettings) -> WorkerCredentials | None:
    """Return what workers get for credentials; None where the client's own go on, as all its headers do.

    Raises: ConfigError where the workers' key cannot be used.
    """
    key = None
    if settings.worker_api_key:
        (key,) = read_keys([settings.worker_api_key], None, "--worker-api-key")
    has_gate = (
        settings.api_key or settings.api_key_file or settings.admin_api_key or settings.admin_api_key_file
    )
    return WorkerCredentials(key) if key or has_gate else None
