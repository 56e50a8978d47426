"""One frozen dataclass of settings, filled from flags, then environment, then TOML, then its defaults.

A field becomes the flag `--field-name`, the variable `PREFIX_FIELD_NAME` and the TOML key `field_name`; the
docstring under the field is the flag's help. Field types: bool, int, float, str, Path, `Literal` of strings,
any of these or None, and `tuple[str, ...]` (a flag that takes several values; space-separated in the
environment). A flag or TOML key that is unknown, and a value that does not fit, fail with the place they
came from.
"""

import argparse
import ast
import dataclasses
import inspect
import math
import textwrap
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Generic, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import ConfigError

T = TypeVar("T")

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})


class SettingsLoader(Generic[T]):
    """Reads settings of the dataclass `cls`; `section` names its TOML table, `env_prefix` its variables."""

    def __init__(self, cls: type[T], *, section: str, env_prefix: str) -> None:
        self._cls = cls
        self._section = section
        self._env_prefix = env_prefix
        self._types = get_type_hints(cls)
        self._fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """Add `--config` and a flag for each field to `parser`."""
        group = parser.add_argument_group("settings")
        group.add_argument(
            "--config",
            type=Path,
            metavar="FILE",
            help=f"TOML file; settings stand in its [{self._section}] table",
        )
        documentation = field_docstrings(self._cls)
        for name, field in self._fields.items():
            options: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS}
            kind, _ = _without_none(self._types[name])
            if kind is bool:
                options["action"] = argparse.BooleanOptionalAction
            elif get_origin(kind) is tuple:
                options |= {
                    "nargs": "*",
                    "action": "extend",
                    "metavar": field.metadata.get("metavar", "VALUE"),
                }
            elif get_origin(kind) is Literal:
                options["choices"] = get_args(kind)
            else:
                options["metavar"] = field.metadata.get("metavar", kind.__name__.upper())
            help_text = documentation.get(name, "").replace("%", "%%") + _default_text(field)
            group.add_argument(f"--{name.replace('_', '-')}", help=help_text, **options)

    def load(self, flags: Mapping[str, object], environment: Mapping[str, str]) -> T:
        """Return the settings; `flags` are the parsed flags that were given, by field name.

        Raises: ConfigError naming the flag, variable or TOML key that is wrong, and what it takes.
        """
        values: dict[str, object] = {}
        config = flags.get("config")
        if config is not None:
            values |= self._from_toml(Path(str(config)))
        values |= self._from_environment(environment)
        for name in self._fields:
            if name in flags:
                values[name] = self._convert(name, flags[name], f"--{name.replace('_', '-')}")
        missing = [
            f"--{name.replace('_', '-')}"
            for name, field in self._fields.items()
            if name not in values
            and field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        ]
        if missing:
            raise ConfigError(f"missing: {', '.join(missing)}")
        return self._cls(**values)

    def _from_environment(self, environment: Mapping[str, str]) -> dict[str, object]:
        values: dict[str, object] = {}
        for name in self._fields:
            variable = self._env_prefix + name.upper()
            if variable in environment:
                raw: object = environment[variable]
                if get_origin(_without_none(self._types[name])[0]) is tuple:
                    raw = environment[variable].split()
                values[name] = self._convert(name, raw, variable)
        return values

    def _from_toml(self, path: Path) -> dict[str, object]:
        try:
            document = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"--config {path}: {error}") from error
        table = document.get(self._section, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--config {path}: {self._section!r} must be a table")
        for key in table:
            if key not in self._fields:
                known = ", ".join(sorted(self._fields))
                raise ConfigError(
                    f"--config {path}: unknown key {key!r} in [{self._section}]; known are {known}"
                )
        return {key: self._convert(key, value, f"{path}: {key}") for key, value in table.items()}

    def _convert(self, name: str, raw: object, where: str) -> object:
        kind, may_be_none = _without_none(self._types[name])
        if raw is None or (may_be_none and raw == ""):
            return None
        if get_origin(kind) is tuple:
            if not isinstance(raw, Sequence) or isinstance(raw, str):
                raise ConfigError(f"{where}: expected a list, not {raw!r}")
            return tuple(str(item) for item in raw)
        if get_origin(kind) is Literal:
            if raw not in get_args(kind):
                raise ConfigError(f"{where}: expected one of {', '.join(get_args(kind))}, not {raw!r}")
            return raw
        return _convert_scalar(kind, raw, where)


def field_docstrings(cls: type) -> dict[str, str]:
    """Return the docstring under each field of a dataclass, its own and inherited ones, on one line."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for statement, following in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(following, ast.Expr)
                and isinstance(following.value, ast.Constant)
                and isinstance(following.value.value, str)
            ):
                found[statement.target.id] = " ".join(following.value.value.split())
    return found


def _without_none(kind: Any) -> tuple[Any, bool]:
    if get_origin(kind) in (Union, UnionType):
        others = [part for part in get_args(kind) if part is not type(None)]
        return others[0], len(others) < len(get_args(kind))
    return kind, False


def _default_text(field: "dataclasses.Field[Any]") -> str:
    if field.default in (dataclasses.MISSING, None, "", ()):
        return ""
    return f" (default: {field.default})"


def _convert_scalar(kind: type, raw: object, where: str) -> object:
    if kind is bool:
        if isinstance(raw, bool):
            return raw
        word = str(raw).lower()
        if word in _TRUE | _FALSE:
            return word in _TRUE
        raise ConfigError(f"{where}: expected true or false, not {raw!r}")
    if isinstance(raw, bool) or (kind is int and isinstance(raw, float)):
        raise ConfigError(f"{where}: expected {_name(kind)}, not {raw!r}")
    try:
        value = kind(raw)
    except (TypeError, ValueError):
        raise ConfigError(f"{where}: expected {_name(kind)}, not {raw!r}") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where}: expected a finite number, not {raw!r}")
    return value


def _name(kind: type) -> str:
    return {int: "a whole number", float: "a number", str: "a text", Path: "a path"}.get(kind, kind.__name__)
