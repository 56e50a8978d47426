"""The router's settings. Names that SGLang's router has too mean the same here."""

import math
from dataclasses import dataclass, field
from typing import Literal

from ..errors import ConfigError


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
    """Load-balancing policy: a name, or package.module:attribute."""

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

    fleet_concurrency: int = 32
    """Workers that a control call is sent to at the same time; collective calls go to all at once."""

    fleet_timeout_secs: float = 600.0
    """Longest time for a worker to answer a control call, such as an update of its weights."""

    health_failure_threshold: int = 3
    """Refused connections in a row after which a worker is dead, until a probe finds it again."""

    health_check_interval_secs: float = 2.0
    """Time between two probes of a dead worker."""

    health_check_timeout_secs: float = 5.0
    """Longest time for a probe."""

    shutdown_grace_period_secs: float = 10.0
    """At shutdown, how long calls in flight may take to finish before they are broken off."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What is logged."""

    def __post_init__(self) -> None:
        """Check what a type cannot tell.

        Raises: ConfigError naming the flag.
        """
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"--port {self.port}: expected 0 to 65535")
        if not (math.isfinite(self.shutdown_grace_period_secs) and self.shutdown_grace_period_secs >= 0):
            raise ConfigError(
                f"--shutdown-grace-period-secs {self.shutdown_grace_period_secs}: expected 0 or more"
            )
        if "none" in self.middleware and len(self.middleware) > 1:
            raise ConfigError("--middleware none stands alone: it turns all middleware off")
        if len(set(self.middleware)) < len(self.middleware):
            raise ConfigError(f"--middleware {' '.join(self.middleware)}: each one only once")
        for name in (
            "max_payload_size",
            "request_timeout_secs",
            "connect_timeout_secs",
            "fleet_concurrency",
            "fleet_timeout_secs",
            "health_failure_threshold",
            "health_check_interval_secs",
            "health_check_timeout_secs",
        ):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"--{name.replace('_', '-')} {value}: expected more than 0")
