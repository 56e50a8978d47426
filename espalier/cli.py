"""The `espalier` command: the one place that knows every part, and loads only the one that is asked for."""

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .effective import effective_toml
from .errors import ConfigError
from .settings import SettingsLoader
from .suggestion import suggestion
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
    check: str | None = None
    """`module:function` that takes the settings and fails where `run` would, for `--dry-run`."""
    unused_flags: str | None = None
    """`module:MAPPING` of flags that are taken and do nothing, with what is so instead."""
    positional: str | None = None
    """The flag that a first value without one is meant for."""


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
        check="espalier.router.server:check",
        unused_flags="espalier.router.unused_flags:UNUSED_FLAGS",
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
    "report": _Command(
        help="show a rollout's metrics as a page",
        description="Plot reward, length, groups and speed of a run, as one HTML page.\n\n"
        "  espalier report rollout-output",
        settings="espalier.rollout.report:ReportSettings",
        run="espalier.rollout.report:run",
        section="report",
        env_prefix="ESPALIER_REPORT_",
        positional="--run",
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
        _load(command.settings),
        section=command.section,
        env_prefix=command.env_prefix,
        sections=[each.section for each in _COMMANDS.values()],
    )
    flags = _parsed(name, arguments, loader)
    loaded = loader.load_traced(flags, os.environ)
    if flags.get("dry_run") and command.check is not None:
        _load(command.check)(loaded.settings)
        told = effective_toml(loaded, section=command.section, groups=loader.groups)
        print(told, end="")  # noqa: T201  a command speaks to its user
        return 0
    run: Callable[[Any], int] = _load(command.run)
    return run(loaded.settings)


def _parsed(name: str, arguments: Sequence[str], loader: SettingsLoader[Any]) -> dict[str, object]:
    """Return the flags that were given, by name.

    Raises: ConfigError naming the unknown ones, and never their values, which may be secrets.
    """
    command = _COMMANDS[name]
    if command.positional and arguments and not arguments[0].startswith("-"):
        arguments = [command.positional, *arguments]
    parser = argparse.ArgumentParser(
        prog=f"espalier {name}",
        usage=f"espalier {name} [FLAG …]",
        description=command.description,
        epilog=_load(command.epilog)() if command.epilog else None,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    loader.add_flags(parser)
    known = loader.flags
    if command.check is not None:
        known = [*known, "--dry-run"]
        parser.add_argument(
            "--dry-run",
            action="store_true",
            help="print the settings and where each comes from, check what can be checked, and end",
        )
    unused: dict[str, str] = dict(_load(command.unused_flags)) if command.unused_flags else {}
    unused = {flag: instead for flag, instead in unused.items() if flag not in known}
    for flag in unused:
        parser.add_argument(flag, nargs="*", dest=flag, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    parsed, rest = parser.parse_known_args(arguments)
    mistakes = [word.partition("=")[0] for word in rest if word.startswith("-") and len(word) > 1]
    if mistakes:
        told = ", ".join(f"{flag}{suggestion(flag, known)}" for flag in mistakes)
        raise ConfigError(f"unknown flag: {told}; espalier {name} --help lists them")
    if rest:
        raise ConfigError(f"a value stands alone, without a flag before it; see espalier {name} --help")
    flags = vars(parsed)
    for flag, instead in unused.items():
        if flag in flags:
            print(f"espalier {name}: {flag} is not used: {instead}", file=sys.stderr)  # noqa: T201
    return flags


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


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Leaves room for our flags' names."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34)


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
