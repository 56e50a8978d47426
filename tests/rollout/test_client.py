import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from espalier.errors import RolloutError, UpstreamError, UpstreamTimeout
from espalier.rollout.client import RetryPolicy, RouterClient
from espalier.rollout.replies import TreeStats
from tests.rollout.fake_router import FakeRouter, Scripted

PAYLOAD = {"text": "a b", "rid": "x", "sampling_params": {}}


class Naps:
    """A clock's sleep that takes no time and remembers how long it should have been."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        await asyncio.sleep(0)


def ask(url: str, question: Callable[[RouterClient], Awaitable[Any]], **options: Any) -> Any:
    async def run() -> Any:
        defaults: dict[str, Any] = {"max_connections": 8, "request_timeout_s": 10.0, "sleep": Naps()}
        async with RouterClient(url, **{**defaults, **options}) as client:
            return await question(client)

    return asyncio.run(run())


def test_busy_answers_are_sent_again_after_the_time_they_ask_for(fake: FakeRouter, router_url: str) -> None:
    naps = Naps()
    fake.scripted["/generate"] = [
        Scripted(503, {"error": {"message": "no worker"}}, {"retry-after": "3"}),
        Scripted(429, "slow down", {"retry-after": "9999"}),
        Scripted(503),
    ]
    reply = ask(router_url, lambda client: client.generate(PAYLOAD), sleep=naps)
    assert reply.text
    assert len(fake.requests) == 4
    assert naps.seconds[:2] == [3.0, RetryPolicy().max_retry_after_s]
    assert 0 < naps.seconds[2] <= 0.8


@pytest.mark.parametrize("status", [400, 404, 409, 413, 422])
def test_a_refusal_is_told_and_never_sent_again(fake: FakeRouter, router_url: str, status: int) -> None:
    fake.scripted["/generate"] = [Scripted(status, {"error": {"message": "temperature must be >= 0"}})]
    with pytest.raises(RolloutError, match=f"answered {status}: temperature must be >= 0"):
        ask(router_url, lambda client: client.generate(PAYLOAD))
    assert len(fake.requests) == 1


@pytest.mark.parametrize("status", [500, 502, 504])
def test_a_failed_call_is_not_sent_again(fake: FakeRouter, router_url: str, status: int) -> None:
    fake.scripted["/generate"] = [Scripted(status, "Internal Server Error")]
    with pytest.raises(UpstreamError, match=f"answered {status}: Internal Server Error"):
        ask(router_url, lambda client: client.generate(PAYLOAD))
    assert len(fake.requests) == 1


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"error": {"message": "m1"}}, "m1"),
        ({"error": "m2"}, "m2"),
        ({"object": "error", "message": "m3", "code": 400}, "m3"),
        ({"detail": "m4"}, "m4"),
        ("m5", "m5"),
        ("", "no reason given"),
    ],
)
def test_every_shape_of_error_is_put_into_words(
    fake: FakeRouter, router_url: str, body: Any, text: str
) -> None:
    fake.scripted["/generate"] = [Scripted(400, body)]
    with pytest.raises(RolloutError, match=f"answered 400: {text}$"):
        ask(router_url, lambda client: client.generate(PAYLOAD))


def test_refused_connections_are_tried_again_until_the_attempts_are_used_up() -> None:
    naps = Naps()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(UpstreamError, match="nothing answers there: Connection refused"):
            ask(url, lambda c: c.generate(PAYLOAD), sleep=naps, retry=RetryPolicy(attempts=4))
    assert len(naps.seconds) == 3


def test_an_unknown_host_is_told() -> None:
    with pytest.raises(UpstreamError, match=r"unknown host espalier\.invalid"):
        ask(
            "http://espalier.invalid:80",
            lambda client: client.generate(PAYLOAD),
            retry=RetryPolicy(attempts=1),
        )


def test_a_connection_that_is_lost_after_the_request_went_out_is_not_tried_again() -> None:
    served = 0

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        served += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server, RouterClient(url, max_connections=1, request_timeout_s=10.0) as client:
            await client.generate(PAYLOAD)

    with pytest.raises(UpstreamError, match="the connection was lost"):
        asyncio.run(run())
    assert served == 1


def test_a_call_ends_at_its_deadline_retries_included(fake: FakeRouter, router_url: str) -> None:
    began = time.monotonic()
    fake.holds = lambda _: True
    with pytest.raises(UpstreamTimeout, match=r"gave no answer in 0\.3 s"):
        ask(router_url, lambda client: client.generate(PAYLOAD), request_timeout_s=0.3)
    fake.holds = lambda _: False
    fake.scripted["/generate"] = [Scripted(503, "", {"retry-after": "30"})]
    with pytest.raises(UpstreamTimeout):
        ask(
            router_url,
            lambda client: client.generate(PAYLOAD),
            request_timeout_s=0.3,
            sleep=asyncio.sleep,
        )
    assert time.monotonic() - began < 10


def test_an_abort_gets_out_while_generations_hold_every_connection(fake: FakeRouter, router_url: str) -> None:
    fake.holds = lambda _: True

    async def question(client: RouterClient) -> str | None:
        running = asyncio.create_task(client.generate(PAYLOAD))
        waiting = asyncio.create_task(client.generate({**PAYLOAD, "rid": "y"}))
        async with asyncio.timeout(10):
            while not running.done():
                await client.abort("x")
        waiting.cancel()
        finish = running.result().meta_info.finish_reason
        return finish.type if finish else None

    assert ask(router_url, question, max_connections=1) == "abort"


@pytest.mark.parametrize("body", ["[]", "{}", "not json", '{"meta_info": {"output_token_logprobs": 5}}'])
def test_an_answer_that_is_no_generation_is_told(fake: FakeRouter, router_url: str, body: str) -> None:
    fake.scripted["/generate"] = [Scripted(200, body)]
    with pytest.raises(UpstreamError, match="answered what it should not"):
        ask(router_url, lambda client: client.generate(PAYLOAD))


def test_proxy_variables_are_left_aside(
    fake: FakeRouter, router_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert ask(router_url, lambda client: client.generate(PAYLOAD)).text


def test_tree_statistics_are_read_or_told_to_be_absent(fake: FakeRouter, router_url: str) -> None:
    assert ask(router_url, lambda client: client.tree_stats()) == TreeStats(
        prompt_tokens_total=0, reused_tokens_total=0
    )
    fake.has_tree = False
    assert ask(router_url, lambda client: client.tree_stats()) is None


def test_hit_rate_is_that_of_the_time_between() -> None:
    before = TreeStats(prompt_tokens_total=100, reused_tokens_total=90)
    after = TreeStats(prompt_tokens_total=140, reused_tokens_total=100)
    assert after.hit_rate_since(before) == 0.25
    assert before.hit_rate_since(before) is None


def test_workers_are_counted_also_when_there_are_none(fake: FakeRouter, router_url: str) -> None:
    assert ask(router_url, lambda client: client.count_workers()) == 2
    fake.workers = 0
    assert ask(router_url, lambda client: client.count_workers()) == 0


def test_a_thousand_calls_are_in_flight_at_a_time(fake: FakeRouter, router_url: str) -> None:
    fake.holds = lambda _: True

    async def question(client: RouterClient) -> set[str]:
        payloads = [{**PAYLOAD, "rid": f"{number:032x}"} for number in range(1000)]
        running = [asyncio.create_task(client.generate(payload)) for payload in payloads]
        async with asyncio.timeout(60):
            while len(fake.requests) < len(running):  # noqa: ASYNC110  the fake lives in another thread
                await asyncio.sleep(0.02)
            await client.abort_all()
            replies = await asyncio.gather(*running)
        return {reply.meta_info.id for reply in replies}

    assert len(ask(router_url, question, max_connections=1000, request_timeout_s=90.0)) == 1000


def test_a_reply_of_20_megabytes_is_read_whole(fake: FakeRouter, router_url: str) -> None:
    text = "eight ch" * 2_500_000
    fake.change_reply = lambda reply: {**reply, "text": text}
    reply = ask(router_url, lambda client: client.generate(PAYLOAD), request_timeout_s=60.0)
    assert reply.text == text


def test_the_weight_version_is_read_where_the_router_tells_it(fake: FakeRouter, router_url: str) -> None:
    fake.scripted["/model_info"] = [
        Scripted(200, {"model_path": "m", "weight_version": "7"}),
        Scripted(200, {"model_path": "m"}),
        Scripted(404),
    ]
    found = [ask(router_url, lambda client: client.weight_version()) for _ in range(3)]
    assert found == ["7", None, None]


def test_a_prompt_of_several_megabytes_is_sent_whole(fake: FakeRouter, router_url: str) -> None:
    payload = {**PAYLOAD, "image_data": ["base64 " * 500_000]}
    assert ask(router_url, lambda client: client.generate(payload), request_timeout_s=60.0).text
    assert fake.requests == [payload]
