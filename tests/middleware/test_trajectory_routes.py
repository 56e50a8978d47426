"""The endpoints that give trajectories back and forget them, over a real socket."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from espalier.middleware import RadixTreeMiddleware
from espalier.middleware.reports import MAX_PAGE_TOKENS
from tests.router.running import router
from tests.simulator.workers import INSTANT, running_worker

from .driver import END, IM_END, USER, Setup, ids_of, says
from .fake_worker import logprob
from .test_trajectories import recorded, served

DOCUMENT = Path(__file__).parents[2] / "docs" / "trajectories.md"
ODD_NAMES = ["a/b", "a%2Fb", "with space?and=query#", "ünï😀", "x/trajectories", "."]
Read = Callable[[bytes], tuple[dict[str, memoryview], Any]]


def reader() -> Read:
    """Return the reader that the documentation shows."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    read: Read = names["read_buffers"]
    return read


def get_buffers(client: httpx.Client, path: str) -> tuple[dict[str, list[Any]], Any]:
    return as_lists(client.get(path, headers={"accept": "application/octet-stream"}))


def as_lists(answer: httpx.Response) -> tuple[dict[str, list[Any]], Any]:
    assert answer.headers["content-type"] == "application/octet-stream"
    arrays, rest = reader()(answer.content)
    return {name: values.tolist() for name, values in arrays.items()}, rest


def two_turns(folder: Path) -> Setup:
    """Record a turn, and one that goes on from it after a weight update, in one session."""
    setup = recorded(folder)
    setup.worker.weight_version = "v2"
    setup.send(text="the quickit is 42" + END + USER + "and?", rid="r2", session_id="s1")
    return setup


def test_trajectory_is_told_segment_by_segment(tmp_path: Path) -> None:
    setup = two_turns(tmp_path)
    with served(setup.middleware) as client:
        told = client.get("/trajectories/r2").json()
    first, second = (reply["output_ids"] for reply in setup.worker.replies)
    between = "\n" + USER + "and?"
    segments = told.pop("segments")
    text = "the quickit is 42<|im_end|>" + between + "it is 42"
    assert told == {
        "rid": "r2",
        "session_id": "s1",
        "parent": "r1",
        "finish_type": "stop",
        "token_length": sum(len(each["tokens"]) for each in segments),
        "text": text,
    }
    assert [each["tokens"] for each in segments] == [ids_of("the quick"), first, ids_of(between), second]
    assert [each["text"] for each in segments] == ["the quick", "it is 42<|im_end|>", between, "it is 42"]
    assert [each["origin"] for each in segments] == ["context", "generation"] * 2
    assert [each["parent"] for each in segments] == [None, None, "r1", "r1"]
    assert [each["loss_mask"] for each in segments] == [0, 1, 0, 1]
    assert [each["rid"] for each in segments] == [None, "r1", None, "r2"]
    assert [each["finish_type"] for each in segments] == [None, "stop", None, "stop"]
    ends = [0, *(each["end"] for each in segments)]
    assert [each["start"] for each in segments] == ends[:-1]
    versions = [
        [(span["version"], span["start"], span["end"]) for span in each["weight_versions"]]
        for each in segments
    ]
    assert versions == [[], [("v1", ends[1], ends[2])], [], [("v2", ends[3], ends[4])]]
    tokens = [token for each in segments for token in each["tokens"]]
    assert [each["logprobs"] for each in segments] == [
        None,
        [logprob(tokens[: at + 1], "v1") for at in range(ends[1], ends[2])],
        None,
        [logprob(tokens[: at + 1], "v2") for at in range(ends[3], ends[4])],
    ]


def test_reply_that_a_later_turn_leaves_in_the_middle_is_told_as_far_as_it_goes(tmp_path: Path) -> None:
    setup = recorded(tmp_path)
    setup.send(text="the quickit is 7", rid="edited")
    with served(setup.middleware) as client:
        segments = client.get("/trajectories/edited").json()["segments"]
    assert [(each["text"], each["is_whole"]) for each in segments] == [
        ("the quick", True),
        ("it is ", False),
        ("7", True),
        ("it is 42", True),
    ]
    assert len(segments[1]["logprobs"]) == len(segments[1]["tokens"]) == len("it is ")


def test_prompt_that_is_stored_in_two_parts_is_told_as_one(tmp_path: Path) -> None:
    setup = Setup(tmp_path, says("hello"))
    shared = "you are a helpful assistant, " * 4
    for rid in ("first", "second"):
        setup.send(text=shared + rid, rid=rid)
    assert setup.stat("cached_tokens") < 2 * len(ids_of(shared))
    with served(setup.middleware) as client:
        context, _ = client.get("/trajectories/second").json()["segments"]
    assert (context["tokens"], context["text"]) == (ids_of(shared + "second"), shared + "second")


def test_log_probabilities_that_the_worker_did_not_give_are_null_and_nan(tmp_path: Path) -> None:
    setup = Setup(tmp_path, says("hello"))
    answer = setup.worker.answer

    def without(body: dict[str, Any]) -> dict[str, Any]:
        reply = answer(body)
        triples = reply["meta_info"]["output_token_logprobs"]
        triples[2][0] = None
        return reply

    setup.worker.answer = without  # type: ignore[method-assign]
    setup.send(text="the", rid="r")
    with served(setup.middleware) as client:
        (_, generation) = client.get("/trajectories/r").json()["segments"]
        arrays, _ = get_buffers(client, "/trajectories/r")
    assert [each is None for each in generation["logprobs"]] == [False, False, True, False, False]
    context = len(ids_of("the"))
    assert [math.isnan(each) for each in arrays["logprobs"]] == [True] * context + [
        False,
        False,
        True,
        False,
        False,
    ]


def test_trajectory_in_buffers_is_the_same_as_in_json(tmp_path: Path) -> None:
    with served(two_turns(tmp_path).middleware) as client:
        told = client.get("/trajectories/r2").json()
        arrays, rest = get_buffers(client, "/trajectories/r2")
    segments = told["segments"]
    assert arrays["tokens"] == [token for each in segments for token in each["tokens"]]
    assert arrays["loss_mask"] == [each["loss_mask"] for each in segments for _ in each["tokens"]]
    known = [each for each in arrays["logprobs"] if not math.isnan(each)]
    assert known == [value for each in segments for value in each["logprobs"] or []]
    for each in segments:
        del each["tokens"], each["logprobs"]
    assert rest == told


@pytest.mark.parametrize("return_logp", [True, False])
def test_retrieval_in_buffers_has_no_logprob_that_is_not_real(tmp_path: Path, return_logp: bool) -> None:
    body = {"text": "the quickit is 42<|im_end|> so", "return_logp": return_logp}
    with served(recorded(tmp_path).middleware) as client:
        told = client.post("/retrieve_from_text", json=body).json()
        accept = {"accept": "text/html;q=0.5, Application/Octet-Stream;q=0.9"}
        arrays, rest = as_lists(client.post("/retrieve_from_text", json=body, headers=accept))
        refused = client.post("/retrieve_from_text", json={}, headers=accept)
    assert (arrays["tokens"], arrays["loss_mask"]) == (told["tokens"], told["loss_mask"])
    assert ("logprobs" in arrays) == ("rollout_logp" in told) == return_logp
    if return_logp:
        assert [math.isnan(each) for each in arrays["logprobs"]] == [not each for each in told["loss_mask"]]
    assert rest == {name: told[name] for name in told if name not in ("tokens", "loss_mask", "rollout_logp")}
    assert refused.json()["error"]["code"] == "bad_request"


@pytest.mark.parametrize("name", ODD_NAMES)
def test_names_may_hold_any_letters(tmp_path: Path, name: str) -> None:
    setup = Setup(tmp_path, says("hello"))
    setup.send(text="the quick", rid=name, session_id=name)
    path = quote(name, safe="") if name != "." else "%2E"
    with served(setup.middleware) as client:
        url = str(client.base_url)
        assert client.get(f"{url}/trajectories/{path}").json()["rid"] == name
        assert client.get(f"{url}/sessions/{path}/trajectories").json()["session_id"] == name
        assert client.delete(f"{url}/trajectories/{path}").json() == {"deleted": 1}
        assert client.get(f"{url}/trajectories/{path}").status_code == 404


def test_session_comes_in_pages_oldest_first(tmp_path: Path) -> None:
    setup = Setup(tmp_path, says("hello"))
    for number in range(5):
        setup.send(text="the quick", rid=str(number), session_id="s")
    setup.send(text="the quick", rid="other", session_id="t")
    pages: list[list[str]] = []
    after: int | None = 0
    with served(setup.middleware) as client:
        while after is not None:
            page = client.get("/sessions/s/trajectories", params={"limit": 2, "after": after}).json()
            assert page["total"] == 5
            pages.append([each["rid"] for each in page["trajectories"]])
            after = page["next"]
        arrays, rest = get_buffers(client, "/sessions/s/trajectories?limit=2")
        assert client.get("/sessions/s/trajectories", params={"limit": 257}).status_code == 422
    assert pages == [["0", "1"], ["2", "3"], ["4"]]
    assert arrays["1.tokens"] == ids_of("the quick") + [token for char in "hello" for token in ids_of(char)]
    assert [each["rid"] for each in rest["trajectories"]] == ["0", "1"]


def test_page_ends_where_it_has_many_tokens(tmp_path: Path) -> None:
    setup = Setup(tmp_path, says("x"))
    for rid in ("a", "b", "c"):
        setup.send(input_ids=[5] * (MAX_PAGE_TOKENS // 2), rid=rid, session_id="s")
    with served(setup.middleware) as client:
        page = client.get("/sessions/s/trajectories").json()
        rest = client.get("/sessions/s/trajectories", params={"after": page["next"]}).json()
    assert [each["rid"] for each in page["trajectories"]] == ["a"]
    assert [each["rid"] for each in rest["trajectories"]] == ["b"]


def test_leaves_are_what_no_later_turn_goes_on_from(tmp_path: Path) -> None:
    setup = two_turns(tmp_path)
    setup.send(text="the quickit is 42" + END + USER + "and?", rid="retry", session_id="s1")
    setup.send(text="another", rid="alone", session_id="s1")
    with served(setup.middleware) as client:
        page = client.get("/sessions/s1/trajectories", params={"leaves": "true"}).json()
    assert [each["rid"] for each in page["trajectories"]] == ["r2", "retry", "alone"]
    assert page["total"] == 3


def test_deleted_trajectory_is_gone_and_the_turn_after_it_is_whole(tmp_path: Path) -> None:
    setup = two_turns(tmp_path)
    with served(setup.middleware) as client:
        before = client.get("/trajectories/r2").json()
        assert client.delete("/trajectories/r1").json() == {"deleted": 1}
        for method in (client.get, client.delete):
            answer = method("/trajectories/r1")
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
        assert client.post("/retrieve_from_text", json={"rid": "r1"}).status_code == 404
        assert client.get("/trajectories/r2").json() == before
        assert client.delete("/sessions/s1/trajectories").json() == {"deleted": 1}
        for method in (client.get, client.delete):
            assert method("/sessions/s1/trajectories").status_code == 404
        assert client.get("/radix_tree/stats").json()["cached_tokens"] == 0


def test_ids_bring_the_mask_and_the_logprobs_of_what_was_sampled(tmp_path: Path) -> None:
    setup = recorded(tmp_path)
    prompt, sampled = ids_of("the quick"), setup.worker.replies[0]["output_ids"]
    rest = ids_of(" so")
    with served(setup.middleware) as client:
        body = {"input_ids": prompt + sampled + rest, "return_logp": True}
        told = client.post("/retrieve_from_ids", json=body).json()
        by_rid = client.post("/retrieve_from_ids", json={"input_ids": prompt + sampled[:-1], "rid": "r1"})
    tokens = prompt + sampled
    assert told["tokens"] == tokens + rest
    assert told["loss_mask"] == [0] * len(prompt) + [1] * len(sampled) + [0] * len(rest)
    expected = [logprob(tokens[: at + 1], "v1") for at in range(len(prompt), len(tokens))]
    assert told["rollout_logp"] == [0.0] * len(prompt) + expected + [0.0] * len(rest)
    assert told["response"] == "it is 42<|im_end|> so"
    assert (told["matched_tokens"], told["matched_chars"]) == (
        len(tokens),
        len("the quickit is 42<|im_end|>"),
    )
    assert by_rid.json()["tokens"] == tokens


def test_ids_that_end_inside_a_reply_bring_its_beginning(tmp_path: Path) -> None:
    setup = recorded(tmp_path)
    tokens = ids_of("the quick") + setup.worker.replies[0]["output_ids"][:3]
    with served(setup.middleware) as client:
        told = client.post("/retrieve_from_ids", json={"input_ids": tokens}).json()
    assert told["tokens"] == tokens
    assert told["loss_mask"] == [0] * len(ids_of("the quick")) + [1] * 3
    assert (told["response"], "rollout_logp" in told) == ("it ", False)


def test_ids_of_a_recorded_prompt_and_of_nothing_recorded_are_context(tmp_path: Path) -> None:
    with served(recorded(tmp_path).middleware) as client:
        for ids, matched in ((ids_of("the quick"), len(ids_of("the quick"))), (ids_of("lazy"), 0)):
            told = client.post("/retrieve_from_ids", json={"input_ids": ids}).json()
            assert (told["tokens"], told["matched_tokens"], sum(told["loss_mask"])) == (ids, matched, 0)
            assert told["response"] == ""


def test_ids_of_siblings_are_told_apart_by_session_and_rid(tmp_path: Path) -> None:
    setup = Setup(tmp_path, says("same"))
    for name in ("a", "b", "c"):
        setup.worker.weight_version = name
        setup.send(text="the quick", rid=name, session_id=name)
    ids = ids_of("the quick") + setup.worker.replies[0]["output_ids"]
    with served(setup.middleware) as client:
        versions = [
            client.post("/retrieve_from_ids", json={"input_ids": ids, **by}).json()["weight_versions"]
            for by in ({"session_id": "a"}, {"rid": "b"}, {})
        ]
    assert [span["version"] for (span,) in versions] == ["a", "b", "c"]


def test_ids_that_cannot_be_looked_up_are_refused_with_the_reason(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], int, str]] = [
        ({}, 400, "input_ids"),
        ({"input_ids": []}, 400, "length >= 1"),
        ({"input_ids": [1, -1]}, 400, "`$.input_ids[1]`"),
        ({"input_ids": [2**31]}, 400, "`$.input_ids[0]`"),
        ({"input_ids": ["1"]}, 400, "Expected `int`"),
        ({"input_ids": [1], "rid": "r1"}, 409, "'r1'"),
        ({"input_ids": [1], "rid": "nobody"}, 404, "'nobody'"),
    ]
    with served(recorded(tmp_path).middleware) as client:
        for body, status, words in cases:
            answer = client.post("/retrieve_from_ids", json=body)
            assert answer.status_code == status
            assert words in answer.json()["error"]["message"]
        deep = client.post("/retrieve_from_ids", content=b"[" * 100_000)
        assert deep.status_code == 400


def test_ids_need_no_tokenizer() -> None:
    with served(RadixTreeMiddleware()) as client:
        told = client.post("/retrieve_from_ids", json={"input_ids": [1, 2, IM_END]}).json()
    assert (told["tokens"], told["response"], told["matched_chars"]) == ([1, 2, IM_END], None, 0)


def test_outline_is_readable_json_without_text(tmp_path: Path) -> None:
    with served(two_turns(tmp_path).middleware) as client:
        answer = client.get("/radix_tree")
        shown = client.get("/radix_tree", params={"preview_tokens": 8}).text
        assert client.get("/radix_tree", params={"nodes": 501}).status_code == 422
    assert (answer.json()["trajectories"], answer.json()["shown"]) == (2, 4)
    assert answer.text.count("\n") > 10
    assert "quick" not in answer.text
    assert "quick" in shown


def test_router_answers_them_and_refuses_bad_parameters() -> None:
    with (
        running_worker(**INSTANT) as worker,
        router(str(worker.base_url), middleware=("radix_tree",)) as client,
    ):
        body = {"text": "hello", "rid": "a/b", "session_id": "s/1", "sampling_params": {"max_new_tokens": 4}}
        reply = client.post("/generate", json=body).json()
        told = client.get("/trajectories/a%2Fb").json()
        assert told["segments"][-1]["tokens"] == reply["output_ids"]
        assert client.get("/sessions/s%2F1/trajectories").json()["total"] == 1
        assert client.get("/sessions/s%2F1/trajectories?limit=0").status_code == 400
        assert client.get("/radix_tree").json()["trajectories"] == 1
        assert client.delete("/trajectories/a%2Fb").json() == {"deleted": 1}
        assert client.get("/trajectories/a%2Fb").json()["error"]["code"] == "not_found"
