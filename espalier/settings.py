"""One frozen dataclass of settings, filled from flags, then environment, then TOML, then its defaults.

A field becomes the flag `--field-name`, the variable `PREFIX_FIELD_NAME` and the TOML key `field_name`; the
docstring under the field is the flag's help. Field types: bool, int, float, str, Path, `Literal` of strings,
any of these or None, and `tuple[str, ...]` (a flag that takes several values; space-separated in the
environment). A flag, variable, TOML key or table that is unknown, and a value that does not fit, fail with
the place they came from.

A field with `metadata={"secret": True}` is never shown: not in errors, nor in what `effective_toml` prints.
A class attribute `flag_groups` (title -> field names) orders the help.
"""

import argparse
import ast
import dataclasses
import inspect
import math
import textwrap
import tomllib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Generic, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from .environment import variables
from .errors import ConfigError
from .suggestion import suggestion

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Loaded(Generic[T_co]):
    """Settings, and where each one came from, by field name."""

    settings: T_co
    origins: Mapping[str, str]


class SettingsLoader(Generic[T]):
    """Reads settings of the dataclass `cls`; `section` names its TOML table, `env_prefix` its variables.

    `sections` are the tables that a file may have besides.
    """

    def __init__(
        self, cls: type[T], *, section: str, env_prefix: str, sections: Collection[str] = ()
    ) -> None:
        self._cls = cls
        self._section = section
        self._sections = {section, *sections}
        self._env_prefix = env_prefix
        self._types = get_type_hints(cls)
        self._fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]

    @property
    def flags(self) -> list[str]:
        """All flags of the settings."""
        return ["--config", *map(_flag, self._fields)]

    @property
    def groups(self) -> Mapping[str, tuple[str, ...]]:
        """Titles of the help's groups, and the fields that stand under each."""
        groups: Mapping[str, tuple[str, ...]] = getattr(self._cls, "flag_groups", {})
        return groups

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
        places = {
            name: place
            for title, names in self.groups.items()
            for place in [parser.add_argument_group(title)]
            for name in names
        }
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
                options["metavar"] = field.metadata.get("metavar", _metavar(name, kind))
            help_text = documentation.get(name, "").replace("%", "%%") + _default_text(field)
            places.get(name, group).add_argument(_flag(name), help=help_text, **options)

    def load(self, flags: Mapping[str, object], environment: Mapping[str, str]) -> T:
        """Return the settings; `flags` are the parsed flags that were given, by field name.

        Raises: ConfigError naming the flag, variable or TOML key that is wrong, and what it takes.
        """
        return self.load_traced(flags, environment).settings

    def load_traced(self, flags: Mapping[str, object], environment: Mapping[str, str]) -> Loaded[T]:
        """Return the settings as `load` does, with where each one came from.

        Raises: ConfigError
        """
        values: dict[str, object] = {}
        origins = dict.fromkeys(self._fields, "default")
        config = flags.get("config")
        if config is not None:
            found = self._from_toml(Path(str(config)))
            values |= found
            origins |= dict.fromkeys(found, f"file {config}")
        for name, variable, text in variables(environment, prefix=self._env_prefix, names=self._fields):
            is_list = get_origin(_without_none(self._types[name])[0]) is tuple
            values[name] = self._convert(name, text.split() if is_list else text, variable)
            origins[name] = f"environment {variable}"
        for name in self._fields:
            if name in flags:
                values[name] = self._convert(name, flags[name], _flag(name))
                origins[name] = "flag"
        missing = [
            _flag(name)
            for name, field in self._fields.items()
            if name not in values
            and field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        ]
        if missing:
            raise ConfigError(f"missing: {', '.join(missing)}")
        return Loaded(settings=self._cls(**values), origins=origins)

    def _from_toml(self, path: Path) -> dict[str, object]:
        try:
            document = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"--config {path}: {error}") from error
        for key, value in document.items():
            if key not in self._sections:
                raise ConfigError(f"--config {path}: {self._misplaced(key, value)}")
        table = document.get(self._section, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--config {path}: {self._section!r} must be a table")
        for key in table:
            if key not in self._fields:
                known = ", ".join(sorted(self._fields))
                raise ConfigError(
                    f"--config {path}: unknown key {key!r} in [{self._section}]"
                    f"{suggestion(key, self._fields)}; known are {known}"
                )
        return {key: self._convert(key, value, f"{path}: {key}") for key, value in table.items()}

    def _misplaced(self, key: str, value: object) -> str:
        if isinstance(value, dict):
            known = ", ".join(f"[{section}]" for section in sorted(self._sections))
            return f"unknown table [{key}]{suggestion(key, self._sections)}; known are {known}"
        return f"the key {key!r} stands outside of any table: put it under [{self._section}]"

    def _convert(self, name: str, raw: object, where: str) -> object:
        try:
            return self._converted(name, raw, where)
        except ConfigError:
            if is_secret(self._fields[name]):
                raise ConfigError(
                    f"{where}: expected texts, and it is none (a secret, so not shown)"
                ) from None
            raise

    def _converted(self, name: str, raw: object, where: str) -> object:
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


def is_secret(field: "dataclasses.Field[Any]") -> bool:
    """Tell whether a field's value must never be shown."""
    return bool(field.metadata.get("secret"))


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _metavar(name: str, kind: type) -> str:
    """Return what stands for a value in the help: its unit, where the name tells one."""
    unit = name.rpartition("_")[2]
    if unit in ("secs", "port"):
        return unit.upper()
    return {int: "N", float: "X", str: "TEXT", Path: "PATH"}.get(kind, kind.__name__.upper())


def _default_text(field: "dataclasses.Field[Any]") -> str:
    if field.default in (dataclasses.MISSING, None, "", ()):
        return ""
    if isinstance(field.default, bool):
        return f" (default: {'on' if field.default else 'off'})"
    default = " ".join(field.default) if isinstance(field.default, tuple) else field.default
    if isinstance(default, float):
        default = f"{default:g}"
    return f" (default: {default})"


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
