"""`espalier demo`: two workers, a router and a rollout over arithmetic problems, on one machine."""

import _thread
import os
import shlex
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.markup import escape

from .errors import ConfigError
from .processes import ChildDied, Children
from .rollout.command import run as run_rollout
from .rollout.config import RolloutConfig

EXIT_FAILED = 1
"""A worker or the router died, or the rollout failed."""

EXIT_INTERRUPTED = 130
"""Ended by Ctrl-C or SIGTERM, as shells report it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSettings:
    """What `espalier demo` can be told."""

    engine: Literal["sim", "sglang"] = "sim"
    """Simulated workers, or real SGLang servers."""

    engine_command: str | None = None
    """With sglang: the command that starts one server, with {port} and optionally {index} (0, 1, …)."""

    model_path: str | None = None
    """With sglang and no engine command: the model to serve."""

    workers: int = 2
    """How many workers to start."""

    router_port: int = 0
    """Port of the router; 0 takes any free one."""

    prompt_data: Path = Path("examples/data/arithmetic.jsonl")
    """Problems to solve, one JSON object a line."""

    output_dir: Path = Path("runs/demo")
    """Where samples, metrics and logs go; emptied of an earlier demo's files first."""

    num_rollout: int = 3
    """How many steps to run."""

    rollout_batch_size: int = 32
    """Prompts a step."""

    n_samples_per_prompt: int = 8
    """Samples a prompt."""

    startup_timeout_s: float = 300.0
    """How long a worker may take to be ready; loading a real model takes a while."""

    seed: int = 42
    """Seed of the workers and of the rollout."""

    def __post_init__(self) -> None:
        """Check what belongs together.

        Raises: ConfigError naming the flag.
        """
        if self.workers < 1:
            raise ConfigError(f"--workers {self.workers}: expected at least 1")
        if self.engine == "sglang" and self.engine_command is None and self.model_path is None:
            raise ConfigError("--engine sglang needs --model-path MODEL or --engine-command COMMAND")
        if not 0 <= self.router_port <= 65535:
            raise ConfigError(f"--router-port {self.router_port}: expected 0 to 65535")
        if self.engine_command is not None:
            if "{port}" not in self.engine_command:
                raise ConfigError("--engine-command must contain {port}, where the worker's port goes")
            try:
                shlex.split(self.engine_command)
            except ValueError as error:
                raise ConfigError(f"--engine-command cannot be split into words: {error}") from None


def run(settings: DemoSettings) -> int:
    """Run the demo; return the exit status. Everything that was started is stopped, whatever happens.

    Raises: ConfigError where a setting cannot be met.
    """
    console = Console(soft_wrap=True, highlight=False)
    if not settings.prompt_data.is_file():
        raise ConfigError(f"--prompt-data {settings.prompt_data}: no such file")
    logs = settings.output_dir / "logs"
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output-dir {settings.output_dir}: {error.strerror}") from None
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    with Children() as children:
        try:
            router_url = _start(settings, children, logs, console)
            children.watch(lambda: _thread.interrupt_main(signal.SIGTERM))
            status = run_rollout(_rollout_config(settings, router_url, console), console=console)
        except ChildDied as error:
            children.death = error
        except KeyboardInterrupt:
            status = EXIT_INTERRUPTED
        if children.death is not None:
            console.print(f"[red]The demo stopped:[/] {escape(str(children.death))}")
            status = EXIT_FAILED
        console.print("stopping the workers and the router …")
        return status


def _start(settings: DemoSettings, children: Children, logs: Path, console: Console) -> str:
    began_s = time.monotonic()
    kind = "simulated" if settings.engine == "sim" else "SGLang"
    console.print(f"starting {settings.workers} {kind} workers and the router …")
    urls, started = [], []
    for index in range(settings.workers):
        port = _free_port()
        child = children.start(
            f"worker {index}", _worker_argv(settings, index, port), logs / f"worker-{index}.log", os.environ
        )
        urls.append(f"http://127.0.0.1:{port}")
        started.append(child)
    for url, child in zip(urls, started, strict=True):
        child.wait_ready(f"{url}/ready", settings.startup_timeout_s)
    port = settings.router_port or _free_port()
    router_argv = [
        *(sys.executable, "-m", "espalier", "router", "--host", "127.0.0.1", "--port", str(port)),
        *("--worker-urls", *urls, "--log-level", "warning"),
    ]
    router = children.start("the router", router_argv, logs / "router.log", os.environ)
    router_url = f"http://127.0.0.1:{port}"
    router.wait_ready(f"{router_url}/readiness", settings.startup_timeout_s)
    console.print(
        f"ready after {time.monotonic() - began_s:.1f} s: router {router_url} (round-robin, radix tree)"
        f" in front of {' '.join(urls)}",
    )
    return router_url


def _worker_argv(settings: DemoSettings, index: int, port: int) -> list[str]:
    if settings.engine == "sim":
        return [
            *(sys.executable, "-m", "espalier", "worker", "--host", "127.0.0.1", "--port", str(port)),
            *("--seed", str(settings.seed)),
        ]
    if settings.engine_command is not None:
        fields = {"{port}": str(port), "{index}": str(index)}
        argv = shlex.split(settings.engine_command)
        for name, value in fields.items():
            argv = [word.replace(name, value) for word in argv]
        return argv
    assert settings.model_path is not None
    return [
        *(sys.executable, "-m", "sglang.launch_server", "--model-path", settings.model_path),
        *("--host", "127.0.0.1", "--port", str(port), "--base-gpu-id", str(index)),
    ]


def _rollout_config(settings: DemoSettings, router_url: str, console: Console) -> RolloutConfig:
    is_random = settings.engine == "sglang" and settings.model_path is None
    if is_random:
        console.print(
            "The model has random weights and answers nothing right, so the reward is the share of digits"
            " in a response (digit_share) instead of the correctness of its answer (math)."
        )
    return RolloutConfig(
        router_url=router_url,
        prompt_data=settings.prompt_data,
        output_dir=settings.output_dir,
        overwrite=True,
        num_rollout=settings.num_rollout,
        rollout_batch_size=settings.rollout_batch_size,
        n_samples_per_prompt=settings.n_samples_per_prompt,
        over_sampling_batch_size=settings.rollout_batch_size + settings.rollout_batch_size // 2,
        rm_type="digit_share" if is_random else "math",
        dynamic_sampling_filter_path="check_reward_nonzero_std",
        rollout_max_response_len=64 if is_random else 512,
        rollout_seed=settings.seed,
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
