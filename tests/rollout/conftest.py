"""Fixtures of the rollout's tests: a fake router on a real socket, and a dataset to go with it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from espalier.rollout import RolloutConfig
from tests.rollout.fake_router import FakeRouter
from tests.serving import serve


class Switch:
    """Serves whichever fake router the running test has: a server of its own for each would take long."""

    target: FakeRouter = FakeRouter()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.target(scope, receive, send)


@pytest.fixture(scope="session")
def server() -> Iterator[tuple[Switch, str]]:
    switch = Switch()
    with serve(switch) as url:
        yield switch, url


@pytest.fixture
def fake() -> FakeRouter:
    return FakeRouter()


@pytest.fixture
def router_url(fake: FakeRouter, server: tuple[Switch, str]) -> Iterator[str]:
    switch, url = server
    switch.target = fake
    yield url
    fake.release()


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    path = tmp_path / "problems.jsonl"
    lines = [
        {"prompt": f"user question {number} ?", "label": "4", "metadata": {"id": number}}
        for number in range(12)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def make_config(dataset: Path, tmp_path: Path, router_url: str) -> Callable[..., RolloutConfig]:
    def make(**changes: Any) -> RolloutConfig:
        settings: dict[str, Any] = {
            "router_url": router_url,
            "prompt_data": dataset,
            "output_dir": tmp_path / "output",
            "rollout_batch_size": 3,
            "n_samples_per_prompt": 4,
            "rm_type": "math",
            "rollout_deterministic": True,
            "request_timeout_s": 20.0,
            "reward_timeout_s": 10.0,
        }
        return RolloutConfig(**{**settings, **changes})

    return make
