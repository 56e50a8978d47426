"""The certificate that the router shows, and the authorities whose clients it takes."""

import ssl
from pathlib import Path

from ..errors import ConfigError


def server_context(cert: Path | None, key: Path | None, client_ca: Path | None) -> ssl.SSLContext | None:
    """Return how connections are encrypted, or None where they are not, for want of a certificate.

    `cert` is a PEM chain, and holds the key too where `key` is None. With `client_ca`, clients must show a
    certificate that one of its authorities has signed.

    Raises: ConfigError naming the flag, the file and the reason.
    """
    if cert is None:
        for flag, path in (("--tls-key-path", key), ("--tls-ca-cert-path", client_ca)):
            if path is not None:
                raise ConfigError(f"{flag} {path}: TLS needs a certificate too: --tls-cert-path")
        return None
    for flag, path in (("--tls-cert-path", cert), ("--tls-key-path", key), ("--tls-ca-cert-path", client_ca)):
        if path is not None:
            _check_readable(path, flag)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(cert, key, password=_no_password)
    except (ssl.SSLError, _Encrypted) as error:
        raise ConfigError(f"{_pair(cert, key)}: {_reason(error)}") from None
    if client_ca is not None:
        try:
            context.load_verify_locations(client_ca)
        except ssl.SSLError as error:
            raise ConfigError(f"--tls-ca-cert-path {client_ca}: {_reason(error)}") from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class _Encrypted(Exception):
    """The key wants a password: asking for one would hang a server."""


def _no_password() -> str:
    raise _Encrypted("the key is encrypted, and there is nobody to ask for its password: decrypt the file")


def _check_readable(path: Path, flag: str) -> None:
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise ConfigError(f"{flag} {path}: {error.strerror}") from None


def _pair(cert: Path, key: Path | None) -> str:
    return f"--tls-cert-path {cert}" + (f" --tls-key-path {key}" if key is not None else "")


def _reason(error: Exception) -> str:
    if not isinstance(error, ssl.SSLError):
        return str(error)
    if error.reason == "KEY_VALUES_MISMATCH":
        return "the key does not belong to the certificate"
    if error.reason == "NO_START_LINE" or "PEM" in str(error):
        return "no certificate and key in PEM form"
    return error.reason or str(error)
