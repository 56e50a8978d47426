"""The router over HTTPS, with a certificate made on the spot."""

import signal
import socket
import ssl
import subprocess
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from espalier.errors import ConfigError
from espalier.router.tls import server_context
from tests.router.processes import ended, router_process
from tests.router.running import DEADLINE_S
from tests.router.scripted import answering, reply, scripted_worker

STREAM = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n4\r\nlast\r\n0\r\n\r\n"


class Pair(NamedTuple):
    """A certificate and its key."""

    cert: Path
    key: Path


def self_signed(folder: Path, name: str, *options: str) -> Pair:
    """Make a certificate that is its own authority."""
    pair = Pair(folder / f"{name}.pem", folder / f"{name}.key")
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-days",
        "2",
    ]
    names = ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(pair.key), "-out", str(pair.cert)]
    subprocess.run([*command, *names, *files, *(options or ["-noenc"])], check=True, capture_output=True)
    return pair


def trusting(server: Pair, client: Pair | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(server.cert))
    if client is not None:
        context.load_cert_chain(client.cert, client.key)
    return context


def test_calls_streams_and_large_bodies_pass_over_tls(tmp_path: Path) -> None:
    pair = self_signed(tmp_path, "router")
    large = bytes(range(256)) * (16 << 10)
    flags = ("--tls-cert-path", str(pair.cert), "--tls-key-path", str(pair.key))

    def script(client: socket.socket, request: bytes) -> bool:
        client.sendall(STREAM if b"/stream" in request else reply(request.partition(b"\r\n\r\n")[2]))
        return True

    with scripted_worker(script) as worker, router_process("--worker-urls", worker, *flags) as (process, url):
        assert url.startswith("https://")
        with httpx.Client(base_url=url, verify=trusting(pair), trust_env=False, timeout=DEADLINE_S) as client:
            for _ in range(3):
                assert client.post("/generate", content=b"small").content == b"small"
                assert client.post("/generate", content=large).content == large
                assert client.post("/stream").content == b"firstlast"
            assert client.get("/health").text == "OK"
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"{url.replace('https', 'http')}/health", trust_env=False, timeout=DEADLINE_S)
        ended(process, signal.SIGTERM)


def test_only_clients_of_the_named_authority_are_taken(tmp_path: Path) -> None:
    ours, friend, stranger = (self_signed(tmp_path, name) for name in ("router", "friend", "stranger"))
    flags = (
        "--tls-cert-path",
        str(ours.cert),
        "--tls-key-path",
        str(ours.key),
        "--tls-ca-cert-path",
        str(friend.cert),
    )
    with (
        scripted_worker(answering(reply())) as worker,
        router_process("--worker-urls", worker, *flags) as (_, url),
    ):
        for client, is_taken in ((friend, True), (stranger, False), (None, False)):
            context = trusting(ours, client)
            try:
                answer = httpx.get(f"{url}/health", verify=context, trust_env=False, timeout=DEADLINE_S)
            except httpx.HTTPError:
                assert not is_taken
            else:
                assert (is_taken, answer.status_code) == (True, 200)


def test_key_may_stand_in_the_certificates_file(tmp_path: Path) -> None:
    pair = self_signed(tmp_path, "router")
    both = tmp_path / "both.pem"
    both.write_bytes(pair.cert.read_bytes() + pair.key.read_bytes())
    assert server_context(both, None, None) is not None


def test_without_a_certificate_there_is_no_tls() -> None:
    assert server_context(None, None, None) is None
    for key, authority in ((Path("k"), None), (None, Path("a"))):
        with pytest.raises(ConfigError, match="TLS needs a certificate too: --tls-cert-path"):
            server_context(None, key, authority)


def test_files_that_cannot_be_used_are_told_with_the_reason(tmp_path: Path) -> None:
    first, second = self_signed(tmp_path, "first"), self_signed(tmp_path, "second")
    locked = self_signed(tmp_path, "locked", "-passout", "pass:secret")
    text, missing = tmp_path / "text.pem", tmp_path / "missing.pem"
    text.write_text("no certificate")
    for cert, key, authority, message in (
        (missing, first.key, None, r"--tls-cert-path .*missing\.pem: No such file"),
        (first.cert, missing, None, r"--tls-key-path .*missing\.pem: No such file"),
        (first.cert, first.key, missing, r"--tls-ca-cert-path .*missing\.pem: No such file"),
        (
            first.cert,
            second.key,
            None,
            r"first\.pem --tls-key-path .*second\.key: the key does not belong to",
        ),
        (text, first.key, None, r"text\.pem --tls-key-path .*: no certificate and key in PEM form"),
        (first.cert, None, None, r"first\.pem: no certificate and key in PEM form"),
        (first.cert, first.key, text, r"--tls-ca-cert-path .*text\.pem: "),
        (locked.cert, locked.key, None, "the key is encrypted, and there is nobody to ask for its password"),
        (tmp_path, None, None, r"--tls-cert-path .*: Is a directory"),
    ):
        with pytest.raises(ConfigError, match=message):
            server_context(cert, key, authority)
