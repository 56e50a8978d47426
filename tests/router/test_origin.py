import pytest

from espalier.errors import BadRequest
from espalier.router.origin import Origin


@pytest.mark.parametrize(
    ("url", "host", "port", "authority", "prefix"),
    [
        ("http://h", "h", 80, b"h", b""),
        ("http://h:1/", "h", 1, b"h:1", b""),
        ("http://10.0.0.1:30001", "10.0.0.1", 30001, b"10.0.0.1:30001", b""),
        ("HTTP://Worker-0.svc:65535", "worker-0.svc", 65535, b"worker-0.svc:65535", b""),
        ("http://h:1/engines/7/", "h", 1, b"h:1", b"/engines/7"),
        ("http://h/a", "h", 80, b"h", b"/a"),
        ("http://[::1]:1", "::1", 1, b"[::1]:1", b""),
        ("http://[fe80::1]", "fe80::1", 80, b"[fe80::1]", b""),
        ("http://b\u00fccher:1", "xn--bcher-kva", 1, b"xn--bcher-kva:1", b""),
        (f"http://{'a' * 63}:1", "a" * 63, 1, b"a" * 63 + b":1", b""),
    ],
)
def test_url_is_read(url: str, host: str, port: int, authority: bytes, prefix: bytes) -> None:
    origin = Origin.parse(url)
    assert (origin.host, origin.port, origin.authority, origin.prefix) == (host, port, authority, prefix)
    assert str(origin) == authority.decode()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "10.0.0.1:30001",
        "//h:1",
        "http://",
        "http://:1",
        "http:h:1",
        "https://h:1",
        "ftp://h",
        "http://h:0",
        "http://h:1/caf\u00e9",
        "http://h:99999",
        "http://h:-1",
        "http://h:port",
        "http://w0..svc:1",
        "http://.svc:1",
        f"http://{'a' * 64}:1",
        "http://h h:1",
        " http://h:1",
        "http://h:1 ",
        "http://h:1/a b",
        "http://h:1/\r\nx: y",
        "http://h\t:1",
        "http://user@h:1",
        "http://user:secret@h:1",
        "http://h:1?a=1",
        "http://h:1#a",
        "http://[::1:1",
        "http://[nonsense]:1",
    ],
)
def test_url_that_cannot_be_a_workers_is_refused(url: str) -> None:
    with pytest.raises(BadRequest) as caught:
        Origin.parse(url)
    assert caught.value.message.startswith(f"The worker URL {url!r} is not valid: ")
