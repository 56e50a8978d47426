"""The worker's tokenizer over HTTP beside the same tokenizer in this process."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import tokenizers

from espalier.calls import Call, Handler, Reply
from espalier.errors import UpstreamError
from espalier.middleware import RadixTreeMiddleware
from espalier.middleware.tokenizer import LocalTokenizer, TokenizerFailed
from espalier.middleware.trajectories import Trajectory
from espalier.middleware.worker_tokenizer import MAX_CONCURRENT, WorkerTokenizer
from tests.engine.workers import EngineWorker

from .driver import ASSISTANT, END, IM_END, USER, call_of, ids_of, masks, retrieve, says
from .fake_worker import FakeWorker
from .tokenizers_made import byte_fallback, byte_level, with_beginning

Made = Callable[[], tokenizers.Tokenizer]
each_kind = pytest.mark.parametrize("made", [byte_level, byte_fallback, with_beginning])
TEXTS = [
    "hello world",
    " hello",
    "\nhello  there",
    "<|im_end|>\n<|im_start|>user\nwhat?",
    "naïve 你好 🙂",
    "<tool_call>{}  <tool_call>",
    "\x00</s><s>",
]


def worker_of(made: Made) -> FakeWorker:
    return FakeWorker(made(), says("x"))


@each_kind
@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_texts_are_those_of_the_same_tokenizer_at_hand(made: Made, text: str) -> None:
    local = LocalTokenizer(made())

    async def compare() -> None:
        remote = await WorkerTokenizer.connect(worker_of(made))
        prompt = await local.encode_prompt(text)
        rest = await local.encode_continuation(text)
        assert await remote.encode_prompt(text) == prompt == made().encode(text).ids
        assert await remote.encode_continuation(text) == rest
        assert await remote.decode_prompt(prompt) == await local.decode_prompt(prompt)
        assert await remote.decode_after(prompt, rest) == await local.decode_after(prompt, rest)
        assert remote.prompt_prefix == local.prompt_prefix
        assert remote.decode is not None
        assert local.decode is not None
        for skips in (True, False):
            shown = await asyncio.to_thread(remote.decode, prompt, skips_special_tokens=skips)
            assert shown == local.decode(prompt, skips_special_tokens=skips)

    asyncio.run(compare())


@each_kind
def test_continuation_goes_on_where_the_prompt_ended(made: Made) -> None:
    tokenizer = LocalTokenizer(made())

    async def joined() -> str:
        ids = await tokenizer.encode_prompt("hello") + await tokenizer.encode_continuation("user quick")
        return await tokenizer.decode_prompt(ids)

    assert asyncio.run(joined()) == "hellouser quick"


def test_stop_is_spelled_from_the_second_time_on() -> None:
    async def spellings() -> list[str]:
        remote = await WorkerTokenizer.connect(worker_of(byte_level))
        first = remote.spell((IM_END,))
        for _ in range(20):
            await asyncio.sleep(0)
        return [first, remote.spell((IM_END,))]

    assert asyncio.run(spellings()) == ["", "<|im_end|>"]


def test_stop_of_the_chat_template_is_spelled_from_the_first_time_on() -> None:
    worker = FakeWorker(byte_level(), says("it is 42", stop=True), stop_ids=[IM_END])

    async def forward(call: Call) -> Reply:
        if call.path == "/tokenize" and "messages" in call.json():
            return Reply.of_json({"tokens": ids_of(USER + "x" + END)})
        return await worker(call)

    async def scenario() -> Trajectory:
        middleware = RadixTreeMiddleware()
        await middleware.start(forward)
        for rid, text in (("1", "the quick"), ("2", "the quickit is 42<|im_end|> so")):
            await (await middleware(call_of({"text": text, "rid": rid}), forward)).read()
        return await retrieve(middleware, rid="2")

    found = asyncio.run(scenario())
    reply = len(worker.replies[0]["output_ids"])
    assert found.loss_mask == masks([len(ids_of("the quick")), reply, len(ids_of(" so")), reply])


def test_edited_reply_is_cut_by_the_worker_s_tokenizer() -> None:
    worker = FakeWorker(byte_level(), says("it is 42", stop=True), stop_ids=[IM_END])

    async def scenario() -> Trajectory:
        middleware = RadixTreeMiddleware()
        await middleware.start(worker)
        await (await middleware(call_of({"text": "the quick"}), worker)).read()
        await (await middleware(call_of({"text": "the quickit is 7", "rid": "edited"}), worker)).read()
        return await retrieve(middleware, rid="edited")

    found = asyncio.run(scenario())
    kept = [each for char in "it is " for each in ids_of(char)]
    assert worker.sent[1]["input_ids"] == ids_of("the quick") + kept + ids_of("7")
    assert found.loss_mask[: len(ids_of("the quick") + kept)] == [0] * len(ids_of("the quick")) + [1] * len(
        kept
    )


def test_prompt_by_ids_is_found_by_its_text() -> None:
    worker = FakeWorker(with_beginning(), says("x"))
    prompt = with_beginning().encode(USER + "hi" + END + ASSISTANT).ids

    async def scenario() -> Trajectory:
        middleware = RadixTreeMiddleware()
        await middleware.start(worker)
        await (await middleware(call_of({"input_ids": prompt}), worker)).read()
        return await retrieve(middleware, text=USER + "hi" + END + ASSISTANT + "x")

    # A prompt by ids alone asks for no tokenizer's ids, but its text is asked for.
    assert asyncio.run(scenario()).tokens[:-1] == prompt


def failing_at(*paths: str, instead: Handler) -> Handler:
    async def forward(call: Call) -> Reply:
        if call.path in paths:
            raise UpstreamError("the worker broke off")
        return await instead(call)

    return forward


def test_worker_that_does_not_detokenize_is_used_and_whole_replies_are_reused() -> None:
    worker = FakeWorker(byte_level(), says("it is 42"), stop_ids=[IM_END])
    forward = failing_at("/detokenize", instead=worker)
    middleware = RadixTreeMiddleware()
    for text in ("the quick", "the quickit is 42 or so", "the quickit is 7"):
        asyncio.run(middleware(call_of({"text": text}), forward))
    sampled = worker.replies[0]["output_ids"]
    assert worker.sent[1]["input_ids"] == ids_of("the quick") + sampled + ids_of(" or so")
    assert worker.sent[2]["input_ids"] == ids_of("the quickit is 7")


def test_worker_that_stops_detokenizing_costs_reuse_and_no_call() -> None:
    worker = FakeWorker(byte_level(), says("it is 42"))
    middleware = RadixTreeMiddleware()
    asyncio.run(middleware(call_of({"text": "the quick"}), worker))
    broken = failing_at("/detokenize", instead=worker)

    async def forward(call: Call) -> Reply:
        return await (broken if broken_now else worker)(call)

    middleware = RadixTreeMiddleware()
    broken_now = False
    asyncio.run(middleware(call_of({"text": "the quick"}), forward))
    broken_now = True
    asyncio.run(middleware(call_of({"text": "the quickit is 7"}), forward))
    asyncio.run(middleware(call_of({"input_ids": [5, 6], "rid": "ids"}), forward))
    assert worker.sent[-2]["input_ids"] == ids_of("the quickit is 7")
    assert middleware.stats()["radix_tree_calls_recorded_total"] == 3
    assert asyncio.run(retrieve(middleware, rid="ids")).response is None


@pytest.mark.parametrize(
    "answer",
    [{"tokens": [1, 2]}, {"tokens": [[1]]}, {"tokens": "x"}, {}, []],
)
def test_worker_that_answers_something_else_tokenises_nothing(answer: object) -> None:
    async def forward(call: Call) -> Reply:
        return Reply.of_json(answer)

    with pytest.raises(TokenizerFailed, match="tokeni"):
        asyncio.run(WorkerTokenizer.connect(forward))


def test_no_more_calls_than_some_run_at_once() -> None:
    worker = worker_of(byte_level)
    running = most = 0

    async def forward(call: Call) -> Reply:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return await worker(call)

    async def crowd() -> None:
        remote = await WorkerTokenizer.connect(forward)
        await asyncio.gather(*(remote.encode_prompt("hello") for _ in range(5 * MAX_CONCURRENT)))

    asyncio.run(crowd())
    assert most == MAX_CONCURRENT


def local_ids(text: str, folder: str) -> list[int]:
    tokenizer = tokenizers.Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    return tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.engine
def test_real_worker_s_tokenizer_is_that_of_its_files(engine_workers: tuple[EngineWorker, ...]) -> None:
    async def compare(url: str) -> None:
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as client:

            async def forward(call: Call) -> Reply:
                answer = await client.request(call.method, call.path, content=call.body, headers=call.headers)
                return Reply(status=answer.status_code, headers=[], body=answer.content)

            folder = (await client.get("/model_info")).json()["tokenizer_path"]
            local = LocalTokenizer.load(Path(folder))
            remote = await WorkerTokenizer.connect(forward)
            (stop,) = local_ids("<|im_end|>", folder)
            assert remote.spell((stop,)) == "<|im_end|>"
            for text in TEXTS:
                ids = await local.encode_prompt(text)
                assert await remote.encode_prompt(text) == ids
                assert await remote.encode_continuation(text) == await local.encode_continuation(text)
                assert await remote.decode_prompt(ids) == await local.decode_prompt(ids)

    asyncio.run(compare(engine_workers[0].url))
