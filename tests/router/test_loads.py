"""Workers' loads, in both shapes that routers and engines tell them in."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from espalier.router.answers import Answer
from espalier.router.loads import joined, tokens_held
from espalier.router.workers import Worker

CAPTURES = Path(__file__).resolve().parents[1] / "captures"


def capture(name: str) -> object:
    decoded: object = json.loads((CAPTURES / f"{name}.json").read_text(encoding="utf-8"))["response"]["json"]
    return decoded


@pytest.mark.parametrize(
    ("body", "held"),
    [
        ({"loads": [{"num_total_tokens": 3}, {"num_total_tokens": 4}]}, 7),
        ([{"dp_rank": 0, "num_tokens": 5}, {"dp_rank": 1, "num_tokens": 6}], 11),
        ({"loads": [{"num_total_tokens": 3}, {}]}, None),
        ({"loads": []}, None),
        ({"loads": [1]}, None),
        ({}, None),
        ("busy", None),
        (None, None),
    ],
)
def test_tokens_that_a_worker_holds_are_summed_over_its_ranks(body: object, held: int | None) -> None:
    assert tokens_held(body) == held


def test_real_workers_load_is_read() -> None:
    assert tokens_held(capture("dp2_loads")) == 0
    busy = tokens_held(capture("loads_while_16_running_1_waiting"))
    assert busy is not None
    assert busy > 0


def test_loads_of_all_are_joined_and_named() -> None:
    first, second = (Worker(url=f"http://{name}:1", ordinal=1, id=name) for name in ("a", "b"))
    two_ranks = {"loads": [{"dp_rank": 0, "num_running_reqs": 1}, {"dp_rank": 1, "num_running_reqs": 2}]}
    answers = [
        Answer(worker=first, status=200, body=two_ranks),
        Answer(worker=second, status=502, body={"error": "refused"}, code="upstream_error"),
    ]
    told = joined(answers, datetime(2030, 1, 1, tzinfo=UTC))
    name = {"worker": "http://a:1", "worker_id": "a"}
    assert told["timestamp"] == "2030-01-01T00:00:00+00:00"
    assert told["loads"] == [
        {**name, "dp_rank": 0, "num_running_reqs": 1},
        {**name, "dp_rank": 1, "num_running_reqs": 2},
    ]
    assert (told["total"], told["succeeded"]) == (2, 1)
    assert [each["message"] for each in told["failed"]] == ["refused"]
