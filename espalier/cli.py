"""The `espalier` command: the one place that knows every part, and loads only the one that is asked for."""

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import ConfigError
from .settings import SettingsLoader
from .version import __version__

EXIT_USAGE = 2
"""The command line, a setting or an input file is wrong."""

EXIT_INTERRUPTED = 130
"""Ended by Ctrl-C, as shells report it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Command:
    help: str
    description: str
    settings: str
    """`module:Class` of the settings, loaded when the command is used."""
    run: str
    """`module:function` that takes the settings and returns the exit status."""
    section: str
    env_prefix: str
    epilog: str = ""
    """`module:function` that returns what stands below the settings in the help, if anything."""


_COMMANDS = {
    "router": _Command(
        help="stand in front of SGLang workers",
        description="Spread calls over SGLang workers and record what they sample.\n\n"
        "  espalier router --worker-urls http://10.0.0.1:30001 http://10.0.0.2:30001",
        settings="espalier.router.settings:RouterSettings",
        run="espalier.router.server:run",
        section="router",
        env_prefix="ESPALIER_ROUTER_",
        epilog="espalier.router.policies:help_text",
    ),
    "rollout": _Command(
        help="turn a dataset into training samples, through a router",
        description="Generate, reward and filter samples; write them and their metrics as JSONL.\n\n"
        "  espalier rollout --router-url http://127.0.0.1:30000 --prompt-data problems.jsonl --rm-type math",
        settings="espalier.rollout.config:RolloutConfig",
        run="espalier.rollout.command:run",
        section="rollout",
        env_prefix="ESPALIER_ROLLOUT_",
    ),
    "worker": _Command(
        help="run a simulated SGLang worker, for demos and tests",
        description="A stand-in for an SGLang server: same HTTP API, no GPU, deterministic tokens.\n\n"
        "  espalier worker --port 30001",
        settings="espalier.simulator.settings:WorkerSettings",
        run="espalier.simulator.server:run",
        section="worker",
        env_prefix="ESPALIER_WORKER_",
    ),
    "demo": _Command(
        help="run two workers, a router and a rollout, then stop them",
        description="The main job on one machine: two workers, the router, a rollout over problems.",
        settings="espalier.demo:DemoSettings",
        run="espalier.demo:run",
        section="demo",
        env_prefix="ESPALIER_DEMO_",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status (2: usage, 130: interrupted)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else ""
    parser = _parser()
    if name not in _COMMANDS:
        parser.parse_args(arguments)
        parser.print_help()
        return EXIT_USAGE
    sys.path.insert(0, os.getcwd())  # noqa: PTH109  plug-ins of one's own are looked for here first
    try:
        return _run(name, arguments[1:])
    except ConfigError as error:
        print(f"espalier {name}: {error}", file=sys.stderr)  # noqa: T201  a command speaks to its user
        return EXIT_USAGE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _run(name: str, arguments: Sequence[str]) -> int:
    command = _COMMANDS[name]
    loader: SettingsLoader[Any] = SettingsLoader(
        _load(command.settings), section=command.section, env_prefix=command.env_prefix
    )
    parser = argparse.ArgumentParser(
        prog=f"espalier {name}",
        description=command.description,
        epilog=_load(command.epilog)() if command.epilog else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    loader.add_flags(parser)
    settings = loader.load(vars(parser.parse_args(arguments)), os.environ)
    run: Callable[[Any], int] = _load(command.run)
    return run(settings)


def _load(path: str) -> Any:
    module, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("espalier"):
            raise
        raise ConfigError(
            f"the package {error.name!r} is missing: install Espalier with pip install 'espalier[router]'"
        ) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="espalier",
        description="A router for LLM reinforcement-learning rollouts: exact tokens, many workers.",
        epilog="espalier COMMAND --help tells a command's settings.",
    )
    parser.add_argument("--version", action="version", version=f"espalier {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, command in _COMMANDS.items():
        commands.add_parser(name, help=command.help)
    return parser
