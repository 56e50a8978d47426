"""The endpoints, over a real socket."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI, Request, Response

from espalier.errors import HttpError
from espalier.middleware import RadixTreeMiddleware
from tests.serving import serve

from .driver import IM_END, Setup, ids_of, says


@contextlib.contextmanager
def served(middleware: RadixTreeMiddleware) -> Iterator[httpx.Client]:
    app = FastAPI()
    app.include_router(middleware.routes())

    async def answer(_: Request, error: Exception) -> Response:
        assert isinstance(error, HttpError)
        return Response(error.body(), error.status, dict(headers_of(error)))

    app.add_exception_handler(HttpError, answer)
    with serve(app) as url, httpx.Client(base_url=url) as client:
        yield client


def headers_of(error: HttpError) -> list[tuple[str, str]]:
    return [(name.decode(), value.decode()) for name, value in error.headers()]


def recorded(folder: Path, **options: Any) -> Setup:
    """Return the middleware with one call recorded: the reply's stop token is trimmed from its text."""
    setup = Setup(folder, says("it is 42", stop=True), **options)
    setup.send(text="the quick", rid="r1", session_id="s1")
    return setup


def test_text_as_slime_s_clients_ask_for_it(tmp_path: Path) -> None:
    with served(recorded(tmp_path).middleware) as client:
        body = {"text": "the quickit is 42", "return_logp": True}
        answer = client.post("/retrieve_from_text", json=body).json()
    prompt, sampled = ids_of("the quick"), [*(each for c in "it is 42" for each in ids_of(c)), IM_END]
    assert answer["tokens"] == prompt + sampled
    assert answer["loss_mask"] == [0] * len(prompt) + [1] * len(sampled)
    assert answer["token_length"] == answer["loss_mask_length"] == len(prompt + sampled)
    assert answer["response"] == "it is 42"
    assert len(answer["rollout_logp"]) == len(prompt + sampled)
    assert all(each < 0 for each in answer["rollout_logp"][len(prompt) :])
    assert answer["weight_versions"] == [
        {"version": "v1", "start": len(prompt), "end": len(prompt + sampled)}
    ]
    assert (answer["matched_chars"], answer["matched_tokens"]) == (17, len(prompt + sampled))


def test_logprobs_are_left_out_unless_asked_for(tmp_path: Path) -> None:
    with served(recorded(tmp_path).middleware) as client:
        assert "rollout_logp" not in client.post("/retrieve_from_text", json={"text": "the quick"}).json()


def test_text_that_goes_on_is_tokenised_from_there_as_context(tmp_path: Path) -> None:
    with served(recorded(tmp_path).middleware) as client:
        answer = client.post("/retrieve_from_text", json={"text": "the quickit is 42<|im_end|> so"}).json()
    assert answer["tokens"][-len(ids_of(" so")) - 1 :] == [IM_END, *ids_of(" so")]
    assert answer["loss_mask"][-len(ids_of(" so")) - 1 :] == [1] + [0] * len(ids_of(" so"))
    assert answer["matched_chars"] == len("the quickit is 42<|im_end|>")


def test_text_that_is_not_recorded_is_tokenised_as_context(tmp_path: Path) -> None:
    with served(recorded(tmp_path).middleware) as client:
        answer = client.post("/retrieve_from_text", json={"text": "lazy dog", "return_logp": True}).json()
    assert answer["tokens"] == ids_of("lazy dog")
    assert set(answer["loss_mask"]) == {0}
    assert (answer["response"], answer["matched_tokens"], answer["weight_versions"]) == ("", 0, [])


def test_request_id_is_exact(tmp_path: Path) -> None:
    setup = recorded(tmp_path)
    setup.send(text="the quick", rid="r2", session_id="s2")
    with served(setup.middleware) as client:
        for rid in ("r1", "r2"):
            logprobs = [
                client.post("/retrieve_from_text", json={"return_logp": True, **by}).json()["rollout_logp"]
                for by in ({"rid": rid}, {"rid": rid, "text": "the quickit is 42"})
            ]
            assert logprobs[0] == logprobs[1]
        assert client.post("/retrieve_from_text", json={"rid": "r1"}).json()["response"] == "it is 42"


def test_errors_name_what_is_wrong(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], int, str]] = [
        ({"rid": "r1", "text": "another"}, 409, "'r1'"),
        ({"rid": "nobody"}, 404, "'nobody'"),
        ({"text": ""}, 400, "`text`"),
        ({}, 400, "`text`"),
        ({"text": 5}, 400, "Expected `str | null`, got `int` - at `$.text`"),
    ]
    with served(recorded(tmp_path).middleware) as client:
        for body, status, words in cases:
            answer = client.post("/retrieve_from_text", json=body)
            assert answer.status_code == status
            assert words in answer.json()["error"]["message"]
        assert client.post("/retrieve_from_text", content=b"{").status_code == 400
        surrogate = client.post("/retrieve_from_text", content=b'{"text": "\\ud83d"}')
        assert surrogate.status_code == 400


def test_unrecorded_text_without_tokenizer_is_refused() -> None:
    with served(RadixTreeMiddleware()) as client:
        answer = client.post("/retrieve_from_text", json={"text": "hello"})
    assert answer.status_code == 400
    assert "tokenizer_path" in answer.json()["error"]["message"]


def test_stats_count_tokens_and_what_passed_through(tmp_path: Path) -> None:
    setup = recorded(tmp_path, max_cached_tokens=1000)
    setup.send(text="the quickit is 42<|im_end|>", rid="r2")
    setup.send(text="hello", image_data="data:")
    with served(setup.middleware) as client:
        stats = client.get("/radix_tree/stats").json()
    prompt, reply = len(ids_of("the quick")), len("it is 42") + 1
    assert stats["calls_recorded_total"] == stats["trajectories"] == 2
    assert stats["prompt_tokens_total"] == prompt + (prompt + reply)
    assert stats["reused_tokens_total"] == prompt + reply
    assert stats["generated_tokens_total"] == 2 * reply
    assert stats["cached_tokens"] == prompt + 2 * reply
    assert stats["max_cached_tokens"] == 1000
    assert stats["passed_through_multimodal_total"] == 1
    assert stats["evicted_tokens_total"] == 0
    assert {f"radix_tree_{name}" for name in stats} == set(setup.middleware.stats())
