"""The names that calls get, and how the clients' own come back."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espalier.calls import Call
from espalier.router.rids import (
    RID_LENGTH,
    RidMaker,
    RidRestorer,
    generated_rids,
    listed_rids,
    naming_of,
)

OURS = "0123456789abcdef0123456789abcd01"
RID = OURS.encode()


def call(body: object, *, path: str = "/generate", method: str = "POST") -> Call:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Call(method=method, path=path, target=path.encode(), headers=[], body=content, request_id="r")


def renamed(body: object) -> Any:
    naming = naming_of(call(body))
    assert naming is not None
    return json.loads(naming.body(RID))


def test_no_rid_is_equal_to_another_or_begins_it() -> None:
    maker = RidMaker()
    calls = [maker.next_call() for _ in range(300)]
    rids = [maker.rid(call, attempt) for call in calls for attempt in (1, 2)]
    assert len(set(rids)) == 600
    assert {len(rid) for rid in rids} == {RID_LENGTH}


def test_two_routers_make_different_rids() -> None:
    assert RidMaker().rid(1, 1) != RidMaker().rid(1, 1)


@pytest.mark.parametrize("path", ["/generate", "/v1/completions", "/v1/chat/completions"])
def test_call_without_a_rid_gets_one_and_keeps_every_other_byte(path: str) -> None:
    body = b' \n{ "text": "caf\\u00e9",  "sampling_params": {"temperature": 0.70} }'
    naming = naming_of(call(body, path=path))
    assert naming is not None
    assert naming.client_rid is None
    assert naming.body(RID) == b'{"rid":"' + RID + b'",' + body.lstrip()[1:]


def test_clients_rid_is_kept_aside_and_every_other_value_stays_as_it_was_written() -> None:
    body = b'{"text":"x","rid":"mine \\"1\\"","sampling_params":{"temperature":0.70,"top_p":1e0}}'
    naming = naming_of(call(body))
    assert naming is not None
    assert naming.client_rid == 'mine "1"'
    sent = naming.body(RID)
    assert json.loads(sent)["rid"] == OURS
    assert b'{"temperature":0.70,"top_p":1e0}' in sent


def test_rid_of_null_or_deeper_inside_is_none_of_the_call() -> None:
    assert renamed({"rid": None, "text": "x"}) == {"rid": OURS, "text": "x"}
    nested = {"text": "x", "sampling_params": {"custom_params": {"rid": "theirs"}}}
    assert renamed(nested) == {"rid": OURS, **nested}
    assert renamed({"rid": "alone"}) == {"rid": OURS}


def test_rid_is_found_where_a_middleware_has_parsed_the_body() -> None:
    parsed = call({}).with_json({"rid": "mine", "input_ids": [1]})
    naming = naming_of(parsed)
    assert naming is not None
    assert naming.client_rid == "mine"
    assert naming_of(call({}).with_json({"text": 'say "rid"'})) is not None


@pytest.mark.parametrize(
    "body",
    [b"", b"  ", b"{", b"{}", b"{ }", b"[1]", b"null", b'{"rid":5}', b'{"rid":["a"]}', b'{"rid":"\xff"}'],
)
def test_what_cannot_be_named_goes_as_it_came(body: bytes) -> None:
    assert naming_of(call(body)) is None


def test_only_what_samples_is_named() -> None:
    assert naming_of(call({"text": "x"}, path="/v1/embeddings")) is None
    assert naming_of(call({"text": "x"}, method="GET")) is None
    assert naming_of(call({"text": "x"}, method="PUT")) is not None


@pytest.mark.parametrize(
    ("body", "suffixes"),
    [
        ({"text": "one"}, [""]),
        ({"input_ids": [1, 2]}, [""]),
        ({"messages": [{"role": "user", "content": "hi"}]}, [""]),
        ({"prompt": [1, 2, 3]}, [""]),
        ({"text": ["one", "two"]}, ["_0", "_1"]),
        ({"text": ["one"]}, ["_0"]),
        ({"input_ids": [[1], [2], [3]]}, ["_0", "_1", "_2"]),
        ({"prompt": ["one", "two"]}, ["_0", "_1"]),
        ({"text": "one", "sampling_params": {"n": 2}}, None),
        ({"text": ["one", "two"], "sampling_params": [{"n": 1}, {"n": 2}]}, None),
        ({"messages": [], "n": 4}, None),
        ({"text": "one", "sampling_params": {"n": 1}}, [""]),
    ],
)
def test_rids_that_a_worker_generates_under(body: dict[str, Any], suffixes: list[str] | None) -> None:
    expected = [OURS + suffix for suffix in suffixes] if suffixes is not None else []
    assert generated_rids(call(body), OURS) == expected


def test_batch_that_brings_its_rids_is_known_by_them() -> None:
    assert listed_rids(call({"rid": ["a", "b"], "text": ["x", "y"]})) == ["a", "b"]
    assert listed_rids(call({"text": ["x", "y"]})) == []
    assert listed_rids(call(b'{"rid": [')) == []


@given(st.binary(max_size=40), st.binary(max_size=40), st.lists(st.integers(1, 50), max_size=8))
def test_clients_rid_comes_back_wherever_the_body_is_cut(
    before: bytes, after: bytes, sizes: list[int]
) -> None:
    body = before + RID + after + OURS[:9].encode()
    restorer = RidRestorer(RID, 'mine "1"')
    told = b""
    for size in sizes:
        told += restorer.feed(body[:size])
        body = body[size:]
    told += restorer.feed(body) + restorer.rest()
    assert told == before + b'mine \\"1\\"' + after + OURS[:9].encode()


def test_end_of_an_event_is_passed_on_at_once() -> None:
    restorer = RidRestorer(RID, "mine")
    event = b'data: {"id":"%b"}\n\n' % RID
    assert restorer.feed(event) == b'data: {"id":"mine"}\n\n'
    assert restorer.rest() == b""
