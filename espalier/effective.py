"""The settings a command would run with, as TOML that can be read back, each with where it came from."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from .settings import Loaded, is_secret

_COLUMN: Final = 44
"""Where the origins stand, unless a value is longer."""


def effective_toml(loaded: Loaded[object], *, section: str, groups: Mapping[str, tuple[str, ...]]) -> str:
    """Return `[section]` with a line for each setting, by group; secrets are told of, never told."""
    assert dataclasses.is_dataclass(loaded.settings)
    fields = {field.name: field for field in dataclasses.fields(loaded.settings)}
    lines = [f"[{section}]"]
    for title, names in _grouped(list(fields), groups):
        lines += ["", f"# {title}"]
        for name in names:
            value = getattr(loaded.settings, name)
            lines.append(_line(name, value, loaded.origins[name], secret=is_secret(fields[name])))
    return "\n".join(lines) + "\n"


def _grouped(
    names: list[str], groups: Mapping[str, tuple[str, ...]]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    grouped = {name for group in groups.values() for name in group}
    rest = tuple(name for name in names if name not in grouped)
    yield from groups.items()
    if rest:
        yield "more", rest


def _line(name: str, value: object, origin: str, *, secret: bool) -> str:
    if value is None or (secret and not value):
        return f"# {name} is not set"
    if secret:
        return f"# {name} is set and not shown".ljust(_COLUMN) + f"  # {origin}"
    return f"{name} = {_toml(value)}".ljust(_COLUMN) + f"  # {origin}"


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return f"[{', '.join(_toml(item) for item in value)}]"
    if isinstance(value, str | Path):
        # JSON's escapes are TOML's, but for surrogates, which are not made here, and DEL.
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
