"""Who may ask for what, and what workers are told of it.

Three kinds of paths: open ones (health, and metrics unless protected), those of the data plane, and those of
control: workers, the fleet, and whatever else a worker answers that is not known to be data. A data key opens
the data plane, an admin key everything. Where no admin key is set, data keys open everything; where no key is
set at all, there is no gate.

*Invariant*: a key that this router asks its clients for never reaches a worker, a log or an error.
"""

import hashlib
import hmac
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import msgspec

from ..calls import Headers
from ..errors import ConfigError, Forbidden, HttpError, Unauthorized
from .ledger import DATA_PATHS

OPEN_PATHS: Final = frozenset({"/health", "/liveness", "/readiness"})
"""What balancers and orchestrators ask, which have no keys."""

METRICS_PATH: Final = "/metrics"

ABORT_PATH: Final = "/abort_request"
"""Data, though it is the fleet's: whoever may begin a call may end it."""

CREDENTIAL_HEADERS: Final = frozenset({b"authorization", b"x-api-key"})
"""`Authorization: Bearer KEY`, as OpenAI's clients send it; the other one is Anthropic's."""

_BEARER: Final = b"bearer "


class Keyring:
    """Keys, kept as digests; each look takes the same time, whichever key is right, or none."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    def __bool__(self) -> bool:
        """Tell whether there are keys at all."""
        return bool(self._digests)

    def __contains__(self, key: bytes) -> bool:
        """Tell whether `key` is one of them."""
        digest = _digest(key)
        found = False
        for known in self._digests:
            found |= hmac.compare_digest(known, digest)
        return found


class Gate:
    """Lets requests through by their path and key; `is_control` tells of the router's own control paths."""

    def __init__(
        self,
        keys: Keyring,
        admin_keys: Keyring,
        *,
        is_own: Callable[[str], bool],
        is_control: Callable[[str], bool],
        protect_metrics: bool,
    ) -> None:
        self._keys = keys
        self._admin_keys = admin_keys
        self._is_own = is_own
        self._is_control = is_control
        self._open = OPEN_PATHS if protect_metrics else OPEN_PATHS | {METRICS_PATH}

    def refusal(self, path: str, headers: Headers) -> HttpError | None:
        """Return why a request is not let through; None where it is."""
        if path in self._open:
            return None
        needs_admin = bool(self._admin_keys) and not self._is_data(path)
        if not needs_admin and not self._keys:
            return None
        key = _presented(headers)
        if key is None:
            return Unauthorized("This router asks for a key: send the header Authorization: Bearer KEY")
        if key in self._admin_keys or (not needs_admin and key in self._keys):
            return None
        if key in self._keys:
            return Forbidden(f"This key does not open {path}: it takes an admin key (--admin-api-key)")
        return Unauthorized("The key is not known here")

    def refusal_of_abort(self, headers: Headers, body: bytes) -> HttpError | None:
        """Return why `/abort_request` is not let through: without an admin key, it must name one call."""
        if not self._admin_keys or _names_a_call(body) or (_presented(headers) or b"") in self._admin_keys:
            return None
        return Forbidden(
            'This key ends calls by their "rid" only: all of them take an admin key (--admin-api-key)'
        )

    def _is_data(self, path: str) -> bool:
        if self._is_own(path):
            return path == ABORT_PATH or not self._is_control(path)
        # A proxy before a worker may follow the dots.
        return path in DATA_PATHS or (path.startswith("/v1/") and ".." not in path.split("/"))


class WorkerCredentials:
    """What workers get in place of a client's credentials: a key of the router's own, or nothing."""

    def __init__(self, key: str | None) -> None:
        self._field = None if key is None else (b"authorization", b"Bearer " + key.encode())

    def applied(self, headers: Headers) -> Headers:
        """Return the header fields of a call as a worker may see them."""
        told = [field for field in headers if field[0] not in CREDENTIAL_HEADERS]
        if self._field is not None:
            told.append(self._field)
        return told


def read_keys(keys: Iterable[str], file: Path | None, flag: str) -> list[str]:
    """Return the keys of a flag and of its file, which has one a line; `#` begins a comment line.

    Raises: ConfigError naming the flag or the file, never the key, where one cannot stand in a header.
    """
    found = [(key, flag) for key in keys]
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise ConfigError(f"{flag}-file {file}: {reason}") from None
        of_file = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not of_file:
            raise ConfigError(f"{flag}-file {file}: there is no key in it")
        found += [(key, f"{flag}-file {file}") for key in of_file]
    for key, place in found:
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise ConfigError(f"{place}: a key is one or more visible ASCII characters, without spaces")
    return [key for key, _ in found]


def _names_a_call(body: bytes) -> bool:
    """Tell whether an abort is for one rid; SGLang takes an empty one for the beginning of all."""
    try:
        told = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return (
        isinstance(told, dict)
        and bool(told.get("rid"))
        and told.get("abort_all") in (None, False)
        and told.get("prefix") in (None, False)
    )


def _presented(headers: Headers) -> bytes | None:
    for name, value in headers:
        if name == b"x-api-key":
            return value
        if name == b"authorization" and value[: len(_BEARER)].lower() == _BEARER:
            return value[len(_BEARER) :].strip()
    return None


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
