"""The router's settings. Names that SGLang's router has too mean the same here."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final, Literal

from ..errors import ConfigError
from .logs import LogFormat
from .request_id import REQUEST_ID_HEADERS


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterSettings:
    """Everything `espalier router` can be told; each field is a flag, a variable and a TOML key."""

    host: str = "0.0.0.0"
    """Address to listen on."""

    port: int = 30000
    """Port to listen on; 0 takes any free one."""

    worker_urls: tuple[str, ...] = field(default=(), metadata={"metavar": "URL"})
    """Workers to start with, such as http://10.0.0.1:30001. More can join through the API."""

    policy: str = "round_robin"
    """Load-balancing policy: one of those below, or package.module:attribute."""

    policy_arg: tuple[str, ...] = field(default=(), metadata={"metavar": "KEY=VALUE"})
    """Options for the policy, such as seed=7; values are JSON, else text."""

    balance_abs_threshold: int = 64
    """prefix_affinity leaves a worker that holds so many calls more than the least busy one, and is over
    the relative threshold too."""

    balance_rel_threshold: float = 1.5
    """prefix_affinity leaves a worker that holds so many times the calls of the least busy one, and is over
    the absolute threshold too."""

    middleware: tuple[str, ...] = field(default=("radix_tree",), metadata={"metavar": "NAME"})
    """Middleware from the outermost in, by name or package.module:attribute; "none" for a plain router."""

    middleware_arg: tuple[str, ...] = field(default=(), metadata={"metavar": "NAME.KEY=VALUE"})
    """Options for middleware, such as radix_tree.max_cached_tokens=1000000; values are JSON, else text."""

    tokenizer_path: str | None = None
    """Folder or tokenizer.json for the radix tree; without it, what the workers' /model_info names."""

    max_payload_size: int = 512 * 1024 * 1024
    """Largest request body in bytes; more is answered 413."""

    request_timeout_secs: float = 14400.0
    """Longest time for a call, to the last byte of its reply; then 504. Long generations are normal."""

    connect_timeout_secs: float = 5.0
    """Longest time for a worker to take a connection."""

    first_byte_timeout_secs: float | None = None
    """Longest time to the first byte of a reply; then the call is aborted and sent to another worker. A reply
    that is not streamed begins when its generation ends. Without it, the time for the whole call counts."""

    between_bytes_timeout_secs: float | None = None
    """Longest time that a reply may stand still once it has begun; then 504, or the stream breaks off. While
    generation is paused, streams stand still too."""

    max_concurrent_requests: int = -1
    """Calls at work at a time; more wait for their turn. -1 for any number."""

    queue_size: int = 10_000
    """Calls that may wait for their turn; more are answered 429."""

    queue_timeout_secs: float = 60.0
    """Longest time that a call waits for its turn; then 408."""

    retry_max_retries: int = 5
    """How often a call is sent again where that is safe, to workers it has not been to first."""

    retry_initial_backoff_ms: int = 50
    """Wait before a call is sent to a worker for the second time."""

    retry_max_backoff_ms: int = 30_000
    """Longest wait of that kind."""

    retry_backoff_multiplier: float = 1.5
    """Factor from each such wait to the next."""

    retry_jitter_factor: float = 0.2
    """Share of each wait that chance adds or takes."""

    disable_retries: bool = False
    """Send every call once."""

    worker_file: Path | None = None
    """File that lists workers, one URL a line (# begins a comment) or, named *.json, as a JSON list. It is
    watched: workers come and go with its lines."""

    fleet_concurrency: int = 32
    """Workers that a control call is sent to at the same time; collective calls go to all at once."""

    fleet_timeout_secs: float = 600.0
    """Longest time for a worker to answer a control call, such as an update of its weights."""

    health_failure_threshold: int = 3
    """Connections refused or broken, and probes unanswered, in a row after which a worker is dead."""

    health_success_threshold: int = 2
    """Probes answered in a row after which a dead worker takes calls again."""

    health_check_interval_secs: float = 2.0
    """Time between two probes of a worker, about."""

    health_check_timeout_secs: float = 5.0
    """Longest time for a probe."""

    api_key: tuple[str, ...] = field(default=(), repr=False, metadata={"metavar": "KEY", "secret": True})
    """Keys that clients must send (Authorization: Bearer KEY). A file or variable keeps them out of ps."""

    api_key_file: Path | None = None
    """File with such keys, one a line."""

    admin_api_key: tuple[str, ...] = field(
        default=(), repr=False, metadata={"metavar": "KEY", "secret": True}
    )
    """Keys that control of workers and fleet takes; without any, --api-key opens that too."""

    admin_api_key_file: Path | None = None
    """File with such keys, one a line."""

    worker_api_key: str | None = field(default=None, repr=False, metadata={"metavar": "KEY", "secret": True})
    """Key that the router itself sends to the workers, with calls, probes and control alike."""

    protect_metrics: bool = False
    """Ask for a key for /metrics as well; health is always open."""

    tls_cert_path: Path | None = None
    """Certificate chain to serve HTTPS with, in PEM form."""

    tls_key_path: Path | None = None
    """Its private key, unless that is in the same file."""

    tls_ca_cert_path: Path | None = None
    """Take only clients with a certificate that one of these authorities has signed."""

    prometheus_port: int | None = None
    """Serve /metrics on this port too; never asks for a key there."""

    prometheus_host: str | None = None
    """Address of that port; --host unless told otherwise."""

    prometheus_duration_buckets: tuple[str, ...] = field(default=(), metadata={"metavar": "SECS"})
    """Upper ends of the latency histograms' buckets, in seconds, ascending."""

    health_check_endpoint: str = "/ready"
    """Path of a probe; where a worker does not know it, /health. SGLang's /health generates a token."""

    disable_health_check: bool = False
    """Probe no worker: calls find out whether a dead one is back, one interval later, and what weights it
    serves is not known."""

    allow_stale_workers: bool = False
    """Send calls to workers whose weights are older than other workers' as well."""

    shutdown_grace_period_secs: float = 10.0
    """At shutdown, how long calls in flight may take to finish before they are broken off."""

    request_id_headers: tuple[str, ...] = field(default=REQUEST_ID_HEADERS, metadata={"metavar": "NAME"})
    """Headers in which a client's name for a call is looked for, in this order."""

    log_level: Literal["debug", "info", "warn", "warning", "error", "critical"] = "info"
    """What is logged, to stderr."""

    log_format: LogFormat = "text"
    """How: text is event=… key=value, json one object a line."""

    access_log: bool = False
    """Log a line for each call: method, path, status, times, bytes and request id, never what was said."""

    flag_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "listening": ("host", "port", "tls_cert_path", "tls_key_path", "tls_ca_cert_path"),
        "workers": ("worker_urls", "worker_file"),
        "balancing": ("policy", "policy_arg", "balance_abs_threshold", "balance_rel_threshold"),
        "health": (
            "health_failure_threshold",
            "health_success_threshold",
            "health_check_interval_secs",
            "health_check_timeout_secs",
            "health_check_endpoint",
            "disable_health_check",
            "allow_stale_workers",
        ),
        "middleware": ("middleware", "middleware_arg", "tokenizer_path"),
        "limits": (
            "max_payload_size",
            "max_concurrent_requests",
            "queue_size",
            "queue_timeout_secs",
            "request_timeout_secs",
            "connect_timeout_secs",
            "first_byte_timeout_secs",
            "between_bytes_timeout_secs",
            "shutdown_grace_period_secs",
        ),
        "retries": (
            "retry_max_retries",
            "retry_initial_backoff_ms",
            "retry_max_backoff_ms",
            "retry_backoff_multiplier",
            "retry_jitter_factor",
            "disable_retries",
        ),
        "fleet control": ("fleet_concurrency", "fleet_timeout_secs"),
        "keys": (
            "api_key",
            "api_key_file",
            "admin_api_key",
            "admin_api_key_file",
            "worker_api_key",
            "protect_metrics",
        ),
        "logs and metrics": (
            "log_level",
            "log_format",
            "access_log",
            "request_id_headers",
            "prometheus_port",
            "prometheus_host",
            "prometheus_duration_buckets",
        ),
    }

    def __post_init__(self) -> None:
        """Check what a type cannot tell.

        Raises: ConfigError naming the flag.
        """
        self._check_texts()
        self._check_numbers()

    def _check_texts(self) -> None:
        if "none" in self.middleware and len(self.middleware) > 1:
            raise ConfigError("--middleware none stands alone: it turns all middleware off")
        if len(set(self.middleware)) < len(self.middleware):
            raise ConfigError(f"--middleware {' '.join(self.middleware)}: each one only once")
        endpoint = self.health_check_endpoint
        if (
            not (endpoint.startswith("/") and endpoint.isascii() and endpoint.isprintable())
            or " " in endpoint
        ):
            raise ConfigError(f"--health-check-endpoint {endpoint!r}: expected a path such as /ready")

    def _check_numbers(self) -> None:
        for flag, port in (("--port", self.port), ("--prometheus-port", self.prometheus_port)):
            if port is not None and not 0 <= port <= 65535:
                raise ConfigError(f"{flag} {port}: expected 0 to 65535")
        if not (math.isfinite(self.shutdown_grace_period_secs) and self.shutdown_grace_period_secs >= 0):
            raise ConfigError(
                f"--shutdown-grace-period-secs {self.shutdown_grace_period_secs}: expected 0 or more"
            )
        if self.balance_abs_threshold < 0:
            raise ConfigError(f"--balance-abs-threshold {self.balance_abs_threshold}: expected 0 or more")
        if not (math.isfinite(self.balance_rel_threshold) and self.balance_rel_threshold >= 1):
            raise ConfigError(f"--balance-rel-threshold {self.balance_rel_threshold}: expected 1 or more")
        if self.max_concurrent_requests != -1 and self.max_concurrent_requests < 1:
            raise ConfigError(
                f"--max-concurrent-requests {self.max_concurrent_requests}: expected 1 or more, or -1 for any"
            )
        for name in ("queue_size", "retry_max_retries", "retry_initial_backoff_ms", "retry_max_backoff_ms"):
            _check(name, getattr(self, name) >= 0, getattr(self, name), "0 or more")
        jitter = self.retry_jitter_factor
        _check("retry_jitter_factor", 0 <= jitter <= 1, jitter, "0 to 1")
        multiplier = self.retry_backoff_multiplier
        _check("retry_backoff_multiplier", 1 <= multiplier <= 100, multiplier, "1 to 100")
        for name in _ABOVE_ZERO:
            value = getattr(self, name)
            is_good = value is None or (math.isfinite(value) and value > 0)
            _check(name, is_good, value, "more than 0")


_ABOVE_ZERO: Final = (
    "max_payload_size",
    "request_timeout_secs",
    "connect_timeout_secs",
    "first_byte_timeout_secs",
    "between_bytes_timeout_secs",
    "queue_timeout_secs",
    "fleet_concurrency",
    "fleet_timeout_secs",
    "health_failure_threshold",
    "health_success_threshold",
    "health_check_interval_secs",
    "health_check_timeout_secs",
)
"""Limits and times, which are either more than 0 or, where that is allowed, not set."""


def _check(name: str, holds: bool, value: object, expected: str) -> None:  # noqa: FBT001  the claim itself
    if not holds:
        raise ConfigError(f"--{name.replace('_', '-')} {value}: expected {expected}")
