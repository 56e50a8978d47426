import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest

from espalier.calls import Call, Handler, Reply
from espalier.errors import ConfigError
from espalier.middleware import RadixTreeMiddleware
from espalier.middleware.tokenizer import LocalTokenizer
from espalier.middleware.tokenizer_source import TokenizerSource

from .driver import (
    IM_END,
    Setup,
    call_of,
    capture,
    ids_of,
    says,
)
from .fake_worker import FakeWorker, Sample
from .tokenizers_made import byte_fallback, byte_level, saved


def test_tokenizer_is_found_through_the_worker(tmp_path: Path) -> None:
    worker = FakeWorker(byte_level(), says("x"), tokenizer_path=saved(byte_level(), tmp_path))
    middleware = RadixTreeMiddleware()
    for _ in range(2):
        asyncio.run(middleware(call_of({"text": "hello"}), handler(worker, says("x"))))
    assert [call.path for call in worker.calls] == ["/model_info", "/tokenize", "/generate", "/generate"]
    assert worker.sent[0]["input_ids"] == ids_of("hello")


def test_worker_tokenises_where_no_file_is_at_hand(tmp_path: Path) -> None:
    worker = FakeWorker(byte_level(), says("one", "two", stop=True), stop_ids=[IM_END])
    middleware = RadixTreeMiddleware()
    for text in ("hello", "helloone<|im_end|>\nmore"):
        asyncio.run(middleware(call_of({"text": text}), worker))
    sampled = worker.replies[0]["output_ids"]
    assert worker.sent[1]["input_ids"] == ids_of("hello") + sampled + ids_of("\nmore")


def test_file_that_makes_other_ids_than_the_worker_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    worker = FakeWorker(byte_fallback(), says("x"))

    async def forward(call: Call) -> Reply:
        if call.path == "/model_info":
            return Reply.of_json({"tokenizer_path": saved(byte_level(), tmp_path)})
        return await worker(call)

    asyncio.run(RadixTreeMiddleware()(call_of({"text": "hello"}), forward))
    assert worker.sent[0]["input_ids"] == byte_fallback().encode("hello").ids
    assert "tokenizer_is_the_workers" in caplog.text


@pytest.mark.parametrize("path", ["Qwen/Qwen3-4B", "x" * 5000, "a\x00b", ""])
def test_path_that_means_nothing_here_costs_no_call(path: str) -> None:
    worker = FakeWorker(byte_level(), says("x"))

    async def forward(call: Call) -> Reply:
        if call.path == "/model_info":
            return Reply.of_json({"tokenizer_path": path})
        return await worker(call)

    asyncio.run(RadixTreeMiddleware()(call_of({"text": "hello"}), forward))
    assert worker.sent[0]["input_ids"] == ids_of("hello")


def test_without_tokenizer_ids_callers_are_recorded_and_text_passes_through() -> None:
    middleware = RadixTreeMiddleware()
    reply = msgspec.json.encode(capture("generate_text_logprob"))

    async def forward(call: Call) -> Reply:
        return Reply(status=200 if call.path == "/generate" else 404, headers=[], body=reply)

    asyncio.run(middleware(call_of({"text": "hello"}), forward))
    asyncio.run(middleware(call_of({"input_ids": [1, 2, 3, 4]}), forward))
    stats = middleware.stats()
    assert stats["radix_tree_passed_through_no_tokenizer_total"] == 1
    assert stats["radix_tree_calls_recorded_total"] == 1


def test_tokenizer_is_looked_for_again_once_a_worker_is_up(tmp_path: Path) -> None:
    worker = FakeWorker(byte_level(), says("x"), tokenizer_path=saved(byte_level(), tmp_path))
    now = [100.0]

    async def scenario() -> list[bool]:
        source = TokenizerSource(None, retry_interval_s=5.0, clock=lambda: now[0])
        found = []
        for worker.is_up, now[0] in [(False, 100.0), (True, 104.0), (True, 105.0)]:
            found.append(await source.get(worker) is not None)
        return found

    assert asyncio.run(scenario()) == [False, False, True]


LONG_TEXT = "the quick brown fox " * 40_000
LONG_IDS = ids_of("the quick brown fox ") * 40_000


@pytest.mark.parametrize(
    "work",
    [
        lambda tokenizer: tokenizer.encode_prompt(LONG_TEXT),
        lambda tokenizer: tokenizer.encode_continuation(LONG_TEXT),
        lambda tokenizer: tokenizer.decode_prompt(LONG_IDS),
        lambda tokenizer: tokenizer.decode_after(LONG_IDS[:8], LONG_IDS),
    ],
)
def test_others_do_not_wait_while_a_long_text_is_worked_on(
    work: Callable[[LocalTokenizer], Coroutine[Any, Any, object]],
) -> None:
    """Work that holds the interpreter's lock lets the loop turn a few dozen times, other work thousands."""
    tokenizer = LocalTokenizer(byte_level())

    async def turns_meanwhile() -> int:
        turns = 0
        working = asyncio.create_task(work(tokenizer))
        while not working.done():
            await asyncio.sleep(0)
            turns += 1
        await working
        return turns

    assert asyncio.run(turns_meanwhile()) > 500


def test_long_text_gets_the_same_ids_and_text_as_a_short_one(tmp_path: Path) -> None:
    setup = Setup(tmp_path, says("x"))
    setup.send(text=LONG_TEXT)
    ids = byte_level().encode(LONG_TEXT).ids
    assert setup.worker.sent[0]["input_ids"] == ids
    assert asyncio.run(LocalTokenizer(byte_level()).decode_prompt(ids)) == LONG_TEXT


def test_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer_path .* no tokenizer\.json"):
        RadixTreeMiddleware(tokenizer_path=str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"tokenizer_path .*tokenizer\.json: "):
        RadixTreeMiddleware(tokenizer_path=str(tmp_path))


@pytest.mark.parametrize(
    ("config", "size"),
    [
        ("{}", 413),
        ('{"vocab_size": 100}', 413),
        ('{"vocab_size": null}', 413),
        ('{"time_step_limit": [0.0, Infinity], "vocab_size": 600}', 600),
        ('{"text_config": {"vocab_size": 600, "hidden_size": 8}}', 600),
        ('{"vocab_size": 500, "text_config": {"vocab_size": 600}}', 600),
        ('{"vocab_size": 600, "text_config": {}}', 600),
    ],
)
def test_model_may_have_more_ids_than_its_tokenizer(tmp_path: Path, config: str, size: int) -> None:
    (tmp_path / "config.json").write_text(config)
    folder = Path(saved(byte_level(), tmp_path))
    for path in (folder, folder / "tokenizer.json"):
        assert LocalTokenizer.load(path).vocabulary_size == size


@pytest.mark.parametrize("config", ["{", '{"vocab_size": "many"}', "[]"])
def test_model_configuration_that_cannot_be_read_is_named(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ConfigError, match=r"config\.json: "):
        RadixTreeMiddleware(tokenizer_path=saved(byte_level(), tmp_path))


def handler(worker: FakeWorker, sample: Sample) -> Handler:
    worker.sample = sample
    return worker
