"""One event a line: `event=worker_dead worker=http://10.0.0.1:30001`, or the same as JSON.

A message is written as `"event=name key=%s other=%d"` with its values as arguments, as logging has it. The
names of the fields are read from that template and never from the values, so whatever a client sends, spaces
and line ends included, stays inside its field's quotes.
"""

import functools
import json
import logging
import re
import time
from typing import Final, Literal

_SAID_BY_US: Final = "ASGI callable returned without completing response."
"""uvicorn's words for a reply that was cut short; ours name the call."""

Fields = list[tuple[str, object]]
"""Names and values of an event's fields, in order."""

LogFormat = Literal["text", "json"]

_FIELD: Final = re.compile(r"([a-z_][a-z0-9_]*)=(%[-+ #0-9.]*[a-zA-Z]|[^\s%]+)")
_is_template: Final = re.compile(rf"{_FIELD.pattern}(?: {_FIELD.pattern})*").fullmatch
_is_plain: Final = re.compile(r"[!#-<>-~]+").fullmatch
"""What needs no quotes: visible ASCII but for `"` and `=`."""


class EventFormatter(logging.Formatter):
    """Writes records as events; what was not logged as one becomes `event=log` with its message."""

    def __init__(self, kind: LogFormat) -> None:
        super().__init__()
        self._write = _as_json if kind == "json" else _as_text
        self._kind = kind

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's line; in text, a traceback follows it, indented."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields: Fields = [
            ("time", f"{moment}.{int(record.msecs):03d}Z"),
            ("level", record.levelname.lower()),
            *(
                fields_of(record)
                or [("event", "log"), ("logger", record.name), ("message", record.getMessage())]
            ),
        ]
        if record.exc_info is None:
            return self._write(fields)
        traceback = self.formatException(record.exc_info)
        if self._kind == "json":
            return self._write([*fields, ("traceback", traceback)])
        return self._write(fields) + "".join(f"\n    {line}" for line in traceback.splitlines())


def configure_logging(level: str, kind: LogFormat) -> None:
    """Let the process log events of `level` and above to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(EventFormatter(kind))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.getLogger("uvicorn.error").addFilter(lambda record: record.msg != _SAID_BY_US)


def fields_of(record: logging.LogRecord) -> Fields | None:
    """Return the fields of an event, or None where the record is none."""
    template = _parsed(record.msg) if isinstance(record.msg, str) else None
    arguments = record.args if isinstance(record.args, tuple) else ()
    if template is None or sum(form is not None for _, form, _ in template) != len(arguments):
        return None
    values = iter(arguments)
    return [(name, text if form is None else _valued(form, next(values))) for name, form, text in template]


@functools.lru_cache(maxsize=1024)
def _parsed(template: str) -> tuple[tuple[str, str | None, str], ...] | None:
    """Return name, placeholder or None, and fixed text of each field; None where it is no template."""
    if not template.startswith("event=") or not _is_template(template):
        return None
    return tuple(
        (name, value if value.startswith("%") else None, value) for name, value in _FIELD.findall(template)
    )


def _valued(form: str, value: object) -> object:
    """Return a value as its placeholder wants it; `%s` and `%r` leave numbers and texts what they are."""
    if form[-1] in "srd" and (value is None or isinstance(value, bool | int | float)):
        return value
    return str(value) if form[-1] in "sr" else form % value


def _as_text(fields: Fields) -> str:
    return " ".join(f"{name}={_quoted(value)}" for name, value in fields)


def _quoted(value: object) -> str:
    text = str(value)
    return text if _is_plain(text) else json.dumps(text)


def _as_json(fields: Fields) -> str:
    return json.dumps(dict(fields), default=str)
