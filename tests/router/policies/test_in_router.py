"""Policies where they work: in a router, over real sockets."""

import contextlib
from collections.abc import Iterator

import httpx
import pytest

from tests.router.running import router
from tests.router.scripted import answering, reply, scripted_worker

WORKERS = 4


@contextlib.contextmanager
def fleet(policy: str, *arguments: str) -> Iterator[httpx.Client]:
    """Run a router over workers that answer with their numbers."""
    with contextlib.ExitStack() as workers:
        urls = [
            workers.enter_context(scripted_worker(answering(reply(b"%d" % number))))
            for number in range(WORKERS)
        ]
        yield workers.enter_context(router(*urls, policy=policy, policy_arg=arguments))


def served_by(client: httpx.Client, body: dict[str, object], **headers: str) -> str:
    return client.post("/generate", json=body, headers=headers).text


@pytest.mark.parametrize("policy", ["prefix_affinity", "cache_aware"])
def test_prefix_affinity_keeps_a_prompt_and_what_continues_it_on_one_worker(policy: str) -> None:
    with fleet(policy) as client:
        homes = [served_by(client, {"text": f"{group}: a question."}) for group in range(WORKERS)]
        assert len(set(homes)) == WORKERS
        for group, home in enumerate(homes):
            assert served_by(client, {"text": f"{group}: a question."}) == home
            assert served_by(client, {"text": f"{group}: a question. An answer. More?"}) == home


def test_consistent_hashing_keeps_a_session_on_one_worker_and_rotates_the_rest() -> None:
    with fleet("consistent_hashing", "max_load_factor=2") as client:
        for session in range(10):
            by_header = {served_by(client, {"x": n}, **{"x-smg-routing-key": f"{session}"}) for n in range(3)}
            by_body = {served_by(client, {"session_id": f"{session}", "x": n}) for n in range(3)}
            assert by_header == by_body
            assert len(by_header) == 1
        assert [served_by(client, {}) for _ in range(WORKERS)] == ["0", "1", "2", "3"]


def test_deterministic_sends_the_same_body_to_the_same_worker() -> None:
    with fleet("deterministic") as client:
        homes = {number: served_by(client, {"text": f"{number}"}) for number in range(20)}
        assert len(set(homes.values())) > 1
        assert {number: served_by(client, {"text": f"{number}"}) for number in range(20)} == homes


@pytest.mark.parametrize("policy", ["random", "power_of_two"])
def test_draws_reach_every_worker(policy: str) -> None:
    with fleet(policy, "seed=7") as client:
        assert {served_by(client, {}) for _ in range(40)} == {"0", "1", "2", "3"}


@pytest.mark.parametrize("policy", ["prefix_affinity", "consistent_hashing", "deterministic"])
def test_malformed_body_reaches_a_worker_all_the_same(policy: str) -> None:
    with fleet(policy) as client:
        for body in (b"", b"\xff\x00", b'{"text": "', b'{"session_id": ', b"[" * 10_000):
            for path in ("/generate", "/v1/chat/completions"):
                assert client.post(path, content=body).text in {"0", "1", "2", "3"}
