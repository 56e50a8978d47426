import asyncio

import msgspec
import pytest

from espalier.calls import Call, Handler, MiddlewareBase, Reply, stack
from espalier.errors import BadRequest, NoWorkerAvailable, UpstreamError


def call(body: bytes) -> Call:
    return Call(method="POST", path="/g", target=b"/g", headers=[(b"x-a", b"1")], body=body, request_id="r")


class Chunks:
    def __init__(self, *chunks: bytes) -> None:
        self.chunks = list(chunks)
        self.is_closed = False

    def __aiter__(self) -> "Chunks":
        return self

    async def __anext__(self) -> bytes:
        if not self.chunks:
            raise StopAsyncIteration
        return self.chunks.pop(0)

    async def aclose(self) -> None:
        self.is_closed = True


def test_json_is_parsed_once() -> None:
    one = call(b'{"a": 1}')
    assert one.json() == {"a": 1}
    assert one.json() is one.json()


def test_rewritten_call_has_the_new_body_and_leaves_the_old_one() -> None:
    old = call(b'{"a": 1}')
    old.json()
    new = old.with_json({"b": 2})
    assert (new.body, new.json(), new.headers) == (b'{"b":2}', {"b": 2}, old.headers)
    assert (old.body, old.json()) == (b'{"a": 1}', {"a": 1})


def test_call_whose_body_was_replaced_does_not_tell_of_the_old_one() -> None:
    old = call(b'{"a": 1}')
    old.json()
    new = msgspec.structs.replace(old, body=b'{"b": 2}')
    assert new.json() == {"b": 2}
    assert old.json() == {"a": 1}
    assert msgspec.structs.replace(old.with_json({"c": 3}), body=b'{"d": 4}').json() == {"d": 4}
    with pytest.raises(BadRequest):
        msgspec.structs.replace(old, body=b"{").json()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"", "not valid JSON"),
        (b"[1]", "must be a JSON object, not an array"),
        (b"null", "must be a JSON object, not null"),
        (b"1", "must be a JSON object, not a number"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a":' * 100_000, "not valid JSON"),
    ],
)
def test_body_that_is_no_json_object_is_a_bad_request(body: bytes, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        call(body).json()


def test_streamed_reply_is_read_whole_and_closed() -> None:
    chunks = Chunks(b"ab", b"c")
    reply = Reply(status=200, headers=[], body=chunks)
    assert asyncio.run(reply.read()) == b"abc"
    assert reply.body == b"abc"
    assert chunks.is_closed


def test_reply_longer_than_the_limit_is_an_error_and_closed() -> None:
    chunks = Chunks(b"ab", b"c", b"never read")
    with pytest.raises(UpstreamError, match="longer than 2 bytes"):
        asyncio.run(Reply(status=200, headers=[], body=chunks).read(max_bytes=2))
    assert chunks.is_closed
    assert chunks.chunks == [b"never read"]


def test_error_reply_is_what_openai_clients_read() -> None:
    reply = Reply.of_error(NoWorkerAvailable("none", retry_after_s=5))
    assert reply.status == 503
    assert reply.header(b"retry-after") == b"5"
    assert reply.body == (
        b'{"error":{"message":"none","type":"NoWorkerAvailable","code":"no_available_workers"}}'
    )


def test_stack_runs_outermost_first_and_may_forward_more_than_once() -> None:
    seen: list[str] = []

    class Layer(MiddlewareBase):
        def __init__(self, name: str, times: int) -> None:
            self.name, self.times = name, times

        async def __call__(self, call: Call, forward: Handler) -> Reply:
            for _ in range(self.times):
                seen.append(self.name)
                reply = await forward(call)
            return reply

    async def worker(call: Call) -> Reply:
        seen.append("worker")
        return Reply.of_json({})

    handlers = stack([Layer("a", 1), Layer("b", 2)], worker)
    assert len(handlers) == 3
    asyncio.run(handlers[0](call(b"{}")))  # type: ignore[arg-type]
    assert seen == ["a", "b", "worker", "b", "worker"]
