"""Who is measured: how each router is started, with the settings at which it is fastest.

All go round robin, keep connections open, and log errors only. What the others do besides (health checks,
retries, circuit breakers, load monitoring) is off where there is a flag for it; Espalier's stay on.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .nginx import proxy_command
from .processes import free_port
from .scenarios import Scenario

ONE_THREAD: Final = {"TOKIO_WORKER_THREADS": "1", "HF_HUB_OFFLINE": "1"}
"""For the Rust routers: they would take as many threads as there are cores, which is one here in any case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a subject runs: its port, the port of the worker behind it, a folder for its files."""

    scenario: Scenario
    port: int
    worker_port: int
    folder: Path
    peers_python: str

    @property
    def worker_url(self) -> str:
        """The worker as a URL."""
        return f"http://127.0.0.1:{self.worker_port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A router. `requirement` is its name in requirements.txt; no `command` means no router at all."""

    name: str
    command: Callable[[Place], list[str]] | None
    requirement: str | None = None
    records: bool = False


def _espalier(*flags: str) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        own = ["-m", "espalier", "router", "--worker-urls", place.worker_url, "--log-level", "warning"]
        return [sys.executable, *own, "--host", "127.0.0.1", "--port", str(place.port), *flags]

    return command


def _peer(module: str, *flags: str) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        own = ["-m", f"{module}.launch_router", "--worker-urls", place.worker_url, "--policy", "round_robin"]
        own += ["--host", "127.0.0.1", "--port", str(place.port), "--prometheus-port", str(free_port())]
        return [place.peers_python, *own, "--log-level", "error", *flags]

    return command


def _nginx(place: Place) -> list[str]:
    return proxy_command(place.scenario, port=place.port, worker_port=place.worker_port, folder=place.folder)


UNGUARDED: Final = ("--disable-retries", "--disable-circuit-breaker")

PLAIN: Final = Subject(name="Espalier", command=_espalier("--middleware", "none"))
RECORDING: Final = Subject(name="Espalier, recording", command=_espalier(), records=True)
SGLANG: Final = Subject(
    name="sglang-router",
    command=_peer("sglang_router", *UNGUARDED, "--disable-health-check"),
    requirement="sglang-router",
)
SMG: Final = Subject(
    name="smg",
    command=_peer(
        "smg",
        *UNGUARDED,
        "--disable-health-check",
        "--disable-load-monitoring",
        "--disable-worker-overload-protection",
        "--disable-tokenizer-autoload",
    ),
    requirement="smg",
)
VLLM: Final = Subject(
    name="vllm-router",
    command=_peer("vllm_router", *UNGUARDED, "--health-check-interval-secs", "3600"),
    requirement="vllm-router",
)
NGINX: Final = Subject(name="nginx", command=_nginx)
NO_ROUTER: Final = Subject(name="no router", command=None)

SUBJECTS: Final = (PLAIN, RECORDING, SGLANG, SMG, VLLM, NGINX, NO_ROUTER)
"""In the order of the report. The last two bound the others: nginx as a proxy, and the client and the worker
alone, which share a core."""
