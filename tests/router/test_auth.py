"""Which keys open what, and what of them workers see."""

import socket
from pathlib import Path

import httpx
import pytest

from espalier.errors import ConfigError
from espalier.router.auth import Keyring, WorkerCredentials, read_keys
from tests.router.running import router, until, worker_of
from tests.router.scripted import reply, scripted_worker

OPEN, DATA, CONTROL = "open", "data", "control"
PATHS = {
    "/health": OPEN,
    "/liveness": OPEN,
    "/readiness": OPEN,
    "/metrics": OPEN,
    "/generate": DATA,
    "/v1/chat/completions": DATA,
    "/v1/../flush_cache": CONTROL,
    "/v1/%2e%2e/flush_cache": CONTROL,
    "/abort_request": CONTROL,
    "/docs": DATA,
    "/workers": CONTROL,
    "/workers/": CONTROL,
    "/workers/x": CONTROL,
    "/list_workers": CONTROL,
    "/add_worker": CONTROL,
    "/flush_cache": CONTROL,
    "/pause_generation": CONTROL,
    "/update_weights_from_tensor": CONTROL,
    "/set_internal_state": CONTROL,
}


def told_credentials(client: socket.socket, request: bytes) -> bool:
    """Answer with the lines of the request that tell a key."""
    lines = request.partition(b"\r\n\r\n")[0].split(b"\r\n")
    told = [line for line in lines if line.lower().startswith((b"authorization:", b"x-api-key:"))]
    client.sendall(reply(b"|".join(told)))
    return True


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def post(client: httpx.Client, path: str, headers: dict[str, str]) -> int:
    """Return the status for `path` as it is written: httpx would follow its dots."""
    url = client.base_url.copy_with(raw_path=path.encode())
    return client.send(httpx.Request("POST", url, headers=headers)).status_code


REFUSALS: dict[str, dict[str | None, int]] = {
    OPEN: {},
    DATA: {None: 401, "wrong": 401},
    CONTROL: {None: 401, "wrong": 401, "data-2": 403},
}


def test_keys_open_what_they_are_for() -> None:
    with (
        scripted_worker(told_credentials) as worker,
        router(worker, api_key=("data-1", "data-2"), admin_api_key=("admin",)) as client,
    ):
        for path, kind in PATHS.items():
            for key in (None, "wrong", "data-2", "admin"):
                status = post(client, path, bearer(key) if key else {})
                assert (status if status in (401, 403) else None) == REFUSALS[kind].get(key), (path, key)


@pytest.mark.parametrize(
    ("body", "is_taken"),
    [
        (b'{"rid": "mine"}', True),
        (b'{"rid": "mine", "abort_all": false}', True),
        (b'{"rid": "mine", "abort_all": true}', False),
        (b'{"rid": "m", "prefix": true}', False),
        (b'{"rid": "mine", "abort_all": "true"}', False),
        (b'{"abort_all": true}', False),
        (b'{"rid": ""}', False),
        (b"", False),
        (b"[]", False),
    ],
)
def test_data_key_ends_one_call_and_not_all(body: bytes, is_taken: bool) -> None:
    with (
        scripted_worker(told_credentials) as worker,
        router(worker, api_key=("data",), admin_api_key=("admin",)) as client,
    ):
        answer = client.post("/abort_request", content=body, headers=bearer("data"))
        assert answer.status_code == (200 if is_taken else 403)
        assert client.post("/abort_request", content=body, headers=bearer("admin")).status_code in (200, 400)


def test_refusal_says_how_to_send_a_key_and_is_counted() -> None:
    with router(api_key=("key",)) as client:
        answer = client.post("/generate", headers={"authorization": "Basic a2V5"})
        metrics = client.get("/metrics").text
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "Authorization: Bearer KEY" in answer.json()["error"]["message"]
    assert 'espalier_requests_total{method="POST",path="/generate",status="401"} 1.0' in metrics


def test_data_key_opens_control_where_there_is_no_admin_key() -> None:
    with router(api_key=("key",)) as client:
        assert client.get("/workers").status_code == 401
        assert client.get("/workers", headers=bearer("key")).status_code == 200


def test_admin_key_alone_leaves_the_data_plane_open() -> None:
    with scripted_worker(told_credentials) as worker, router(worker, admin_api_key=("key",)) as client:
        assert client.post("/generate").status_code == 200
        assert client.get("/workers").status_code == 401
        assert client.get("/workers", headers={"x-api-key": "key"}).status_code == 200


def test_metrics_can_be_protected() -> None:
    with router(api_key=("key",), protect_metrics=True) as client:
        assert client.get("/metrics").status_code == 401
        assert client.get("/metrics", headers=bearer("key")).status_code == 200
        assert client.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "authorization: Bearer key|x-api-key: other"),
        ({"api_key": ("key",)}, ""),
        ({"admin_api_key": ("key",)}, ""),
        ({"worker_api_key": "ours"}, "authorization: Bearer ours"),
        ({"api_key": ("key",), "worker_api_key": "ours"}, "authorization: Bearer ours"),
    ],
)
def test_what_workers_see_of_keys(settings: dict[str, str | tuple[str, ...]], told: str) -> None:
    with scripted_worker(told_credentials) as worker, router(worker, **settings) as client:
        headers = {**bearer("key"), "x-api-key": "other"}
        assert client.post("/generate", headers=headers).text == told
        (result,) = client.post("/flush_cache", headers=headers).json()["results"].values()
        assert (result["body"] or "") == told


def test_probes_send_the_routers_key_too() -> None:
    probed: list[bytes] = []

    def script(client: socket.socket, request: bytes) -> bool:
        if request.startswith(b"GET /"):
            probed.append(request)
            return told_credentials(client, request)
        return False

    holder = socket.socket()
    holder.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{holder.getsockname()[1]}"
    with router(
        url,
        worker_api_key="ours",
        disable_health_check=False,
        health_failure_threshold=1,
        health_check_interval_secs=0.05,
    ) as client:
        client.post("/generate")
        until(lambda: not worker_of(client)["is_healthy"])
        with scripted_worker(script, holder):
            until(lambda: bool(probed))
    assert b"authorization: Bearer ours\r\n" in probed[0]


def test_keyring_knows_its_keys_and_shows_none() -> None:
    keyring = Keyring(["one", "two"])
    assert b"two" in keyring
    assert b"three" not in keyring
    assert b"" not in keyring
    assert "one" not in repr(vars(keyring))


def test_credentials_leave_other_fields_as_they_are() -> None:
    fields = [(b"a", b"1"), (b"authorization", b"x"), (b"a", b"2")]
    assert WorkerCredentials(None).applied(fields) == [(b"a", b"1"), (b"a", b"2")]


def test_key_file_has_a_key_a_line(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\none\n\n  two  \n")
    assert read_keys(["zero"], file, "--api-key") == ["zero", "one", "two"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("# nothing\n", "--api-key-file .*keys: there is no key in it"),
        ("hu sh\n", "--api-key-file .*keys: a key is one or more visible ASCII"),
    ],
)
def test_key_file_that_cannot_be_used_is_told_without_its_keys(
    tmp_path: Path, content: str, message: str
) -> None:
    file = tmp_path / "keys"
    file.write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_keys([], file, "--api-key")
    assert "hu sh" not in str(caught.value)
    with pytest.raises(ConfigError, match="--api-key: a key is"):
        read_keys([""], None, "--api-key")
