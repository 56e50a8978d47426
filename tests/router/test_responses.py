"""Errors of the router's own endpoints have the shape of all others."""

from collections.abc import Iterator

import httpx
import pytest

from tests.router.running import router


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    """A client of one router for all tests here: none of them changes it."""
    with router() as client:
        yield client


@pytest.mark.parametrize("path", ["/workers/nobody", "/workers/http%3A%2F%2Fnobody%3A1"])
@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_what_is_not_there_is_404(client: httpx.Client, method: str, path: str) -> None:
    assert_is_error(client.request(method, path), 404, "not_found", "There is no worker ")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("PUT", "/add_worker", "POST"), ("GET", "/abort_request", "POST"), ("POST", "/list_workers", "GET")],
)
def test_method_that_is_not_allowed_is_405_with_those_that_are(
    client: httpx.Client, method: str, path: str, allowed: str
) -> None:
    answer = client.request(method, path)
    assert_is_error(answer, 405, "method_not_allowed", "Method Not Allowed")
    assert answer.headers["allow"] == allowed


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{}", "body.url: Field required"),
        (b"", "Field required"),
        (b"{", "JSON decode error"),
        (b"\xff", "body"),
        (b"[" * 100_000, "body"),
        (b'{"url": "http://h:1", "worker_type": "odd"}', "body.worker_type: Input should be 'regular'"),
    ],
)
def test_body_that_does_not_fit_is_400_and_tells_where(
    client: httpx.Client, body: bytes, message: str
) -> None:
    answer = client.post("/workers", content=body, headers={"content-type": "application/json"})
    assert_is_error(answer, 400, "bad_request", message)


def assert_is_error(answer: httpx.Response, status: int, code: str, message: str) -> None:
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "code"}
    assert error["code"] == code
    assert message in error["message"]
