"""How the parts are put together: whose paths are whose, and what runs in which order."""

import asyncio

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from espalier.errors import ConfigError
from espalier.router.app import create_app
from espalier.router.own_paths import OwnPaths
from espalier.router.settings import RouterSettings
from tests.router.plugins import life
from tests.router.running import router
from tests.router.scripted import answering, reply, scripted_worker


def test_own_paths_are_answered_here_and_all_others_by_the_workers() -> None:
    with (
        scripted_worker(answering(reply(b"worker"))) as worker,
        router(worker) as client,
    ):
        for path in ("/generate", "/v1/chat/completions", "/", "/worker", "/v1/models/x"):
            assert client.get(path).text == "worker"
        for path in ("/workers", "/health", "/openapi.json", f"/workers/{worker}"):
            answer = client.get(path)
            assert (answer.status_code, answer.text == "worker") == (200, False)


def test_paths_with_parameters_are_own_from_their_beginning_on() -> None:
    async def endpoint(_: Request) -> Response:
        return Response()

    owned = OwnPaths([Route("/workers", endpoint), Route("/workers/{url:path}", endpoint)])
    assert "/workers/http://w:1" in owned
    assert "/workers" in owned
    assert "/workersx" not in owned
    assert "/generate" not in owned


def test_worker_url_that_is_not_valid_is_told_with_its_flag() -> None:
    with pytest.raises(ConfigError, match="--worker-urls: The worker URL 'h:1' is not valid"):
        create_app(RouterSettings(worker_urls=("h:1",), middleware=("none",)))


def test_policy_is_made_with_its_arguments_and_thresholds() -> None:
    for options, message in (
        ({"policy": "random", "policy_arg": ("seed=x",)}, "seed=x: expected a whole number"),
        ({"policy": "tests.router.plugins:Balanced", "balance_abs_threshold": 5}, "told 5 and 1.5"),
    ):
        with pytest.raises(ConfigError, match=message):
            create_app(RouterSettings(middleware=("none",), **options))


def test_body_over_the_limit_is_413_for_own_endpoints_too() -> None:
    with router(max_payload_size=10) as client:
        for path in ("/add_worker", "/workers"):
            for body in (iter([b"x" * 6, b"x" * 6]), b"x" * 12):
                answer = client.post(path, content=body)
                assert (answer.status_code, answer.json()["error"]["code"]) == (413, "payload_too_large")


def test_middleware_starts_from_the_innermost_out_and_closes_in_reverse_after_the_last_call() -> None:
    life.clear()
    both = ("tests.router.plugins:Outer", "tests.router.plugins:Inner")
    with scripted_worker(answering(reply(b"hello"))) as worker:
        with router(worker, middleware=both) as client:
            assert client.get("/generate").text == "hello"
        assert life == [
            "inner starts, told hello",
            "inner is called",
            "outer starts, told hello",
            "outer is called",
            "inner is called",
            "outer closes",
            "inner closes",
        ]


def test_what_has_started_is_closed_where_a_later_start_fails() -> None:
    life.clear()
    both = ("tests.router.plugins:Unready", "tests.router.plugins:Inner")

    async def start(worker: str) -> None:
        async with create_app(RouterSettings(worker_urls=(worker,), middleware=both)).running():
            raise AssertionError("it must not run")

    with (
        scripted_worker(answering(reply(b"hello"))) as worker,
        pytest.raises(ConfigError, match="not today"),
    ):
        asyncio.run(start(worker))
    assert life == ["inner starts, told hello", "inner closes"]
