import asyncio
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from espalier.errors import ConfigError, RolloutError
from espalier.rollout import RolloutConfig, Sample
from espalier.rollout.rewards import async_rm
from espalier.rollout.rewards.grader import MAX_CONNECTIONS
from espalier.rollout.rewards.remote import MAX_REPLY_BYTES
from tests.serving import serve


class Grader:
    """Answers with the response's length, or as it was told to; keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, bytes]] = []
        """Answers that are used up before the usual one."""
        self.asked: list[dict[str, Any]] = []
        self.connections: set[int] = set()
        self.hangs = False
        self.running = 0
        self.most_running = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.connections.add(scope["client"][1])
        self.asked.append(json.loads(body))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            while self.hangs:
                if (await receive())["type"] == "http.disconnect":
                    return
            usual = (200, str(len(self.asked[-1].get("response", ""))).encode())
            status, content = self.answers.pop(0) if self.answers else usual
        finally:
            self.running -= 1
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})


@pytest.fixture
def grader() -> Grader:
    return Grader()


@pytest.fixture
def make_config(grader: Grader) -> Iterator[Callable[..., RolloutConfig]]:
    with serve(grader) as url:

        def make(**changes: Any) -> RolloutConfig:
            settings: dict[str, Any] = {"rm_type": "remote", "rm_url": f"{url}/grade", **changes}
            return RolloutConfig(prompt_data=Path("unused"), **settings)

        yield make


MakeConfig = Callable[..., RolloutConfig]


def reward(args: RolloutConfig, **fields: Any) -> Any:
    return asyncio.run(async_rm(args, Sample(**fields)))


@pytest.mark.parametrize("name", ["remote", "remote_rm"])
def test_the_grader_gets_prompt_response_and_label_and_gives_the_reward(
    grader: Grader, make_config: MakeConfig, name: str
) -> None:
    assert reward(make_config(rm_type=name), prompt="p", response="four", label={"a": 1}) == 4.0
    assert grader.asked == [{"prompt": "p", "response": "four", "label": {"a": 1}}]


def test_the_grader_may_answer_with_an_object(grader: Grader, make_config: MakeConfig) -> None:
    grader.answers = [(200, b'{"score": 0.5, "why": "so"}')]
    assert reward(make_config(reward_key="score")) == {"score": 0.5, "why": "so"}


def test_a_boxed_remote_reward_sends_what_is_in_the_box(grader: Grader, make_config: MakeConfig) -> None:
    assert reward(make_config(rm_type="boxed_remote"), response=r"so \boxed{42}") == 2.0
    assert grader.asked[0]["response"] == "42"


def test_a_grader_that_fails_for_a_moment_is_asked_again(grader: Grader, make_config: MakeConfig) -> None:
    grader.answers = [(503, b"busy"), (429, b"slower")]
    assert reward(make_config(), response="four") == 4.0
    assert len(grader.asked) == 3


def test_a_grader_that_refuses_is_not_asked_again(grader: Grader, make_config: MakeConfig) -> None:
    grader.answers = [(403, b'{"detail": "no key"}')]
    with pytest.raises(RolloutError, match=r"grader at .* gave no reward: it answered 403: no key"):
        reward(make_config())
    assert len(grader.asked) == 1


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"fine", "not JSON"),
        (b"null", "no number"),
        (b'"1"', "no finite number"),
        (b"1" + b" " * MAX_REPLY_BYTES, "more than"),
    ],
)
def test_an_answer_that_is_no_reward_is_told(
    grader: Grader, make_config: MakeConfig, answer: bytes, message: str
) -> None:
    grader.answers = [(200, answer)]
    with pytest.raises(RolloutError, match=message):
        reward(make_config())


def test_a_grader_that_hangs_is_cut_off(grader: Grader, make_config: MakeConfig) -> None:
    grader.hangs = True
    with pytest.raises(RolloutError, match=r"took longer than 0\.5 s"):
        reward(make_config(reward_timeout_s=0.5))


def test_a_grader_that_cannot_be_reached_is_cut_off_too(make_config: MakeConfig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(RolloutError, match="took longer than"):
        reward(make_config(rm_url=f"http://127.0.0.1:{port}", reward_timeout_s=0.5))


def test_calls_share_a_bounded_number_of_connections(grader: Grader, make_config: MakeConfig) -> None:
    args = make_config()

    async def run() -> list[Any]:
        return await asyncio.gather(*(async_rm(args, Sample(response="four")) for _ in range(400)))

    assert asyncio.run(run()) == [4.0] * 400
    assert len(grader.connections) <= MAX_CONNECTIONS
    assert grader.most_running <= MAX_CONNECTIONS


def test_without_a_url_or_with_a_wrong_one_there_is_no_grader(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match="--rm-type remote needs --rm-url"):
        make_config(rm_url=None)
    with pytest.raises(RolloutError, match="needs --rm-url"):
        reward(make_config(rm_type="random", rm_url=None), metadata={"rm_type": "remote"})
    with pytest.raises(ConfigError, match="--rm-url grader"):
        make_config(rm_url="grader")


def test_a_label_that_cannot_be_sent_is_told(make_config: MakeConfig) -> None:
    with pytest.raises(RolloutError, match="cannot be sent the label"):
        reward(make_config(), label=object())
