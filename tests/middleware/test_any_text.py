"""Whatever a text holds: its tokens are the tokenizer's, and what was sampled comes back as it was."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st

from espalier.calls import Call, Reply
from espalier.middleware import RadixTreeMiddleware
from espalier.simulator.tokenizer import FOLDER
from tests.engine.environment import DEFAULT_ROOT, HERE, engine_environment
from tests.thoroughness import cases

from .driver import IM_END, Setup, retrieve
from .fake_worker import logprob
from .tokenizers_made import byte_fallback, byte_level, saved, unigram


def simulated() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


def of_the_engine() -> tokenizers.Tokenizer:
    file = engine_environment(DEFAULT_ROOT, HERE).models[0] / "tokenizer.json"
    return tokenizers.Tokenizer.from_file(str(file))


Make = Callable[[], tokenizers.Tokenizer]
the_engines = pytest.param(of_the_engine, marks=pytest.mark.engine)
every_tokenizer = pytest.mark.parametrize(
    "make", [byte_level, byte_fallback, unigram, simulated, the_engines]
)
lossless_tokenizer = pytest.mark.parametrize("make", [byte_level, simulated, the_engines])
"""Those that give any text back as it was."""

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>", "<unk>", "<0x0A>"]
PIECES = [
    *SPECIALS,
    *("<|im_", "end|>", "<|", "|>", "<", "<|im_start", "</"),
    *("🙂", "👩‍👩‍👧‍👦", "🏳️‍🌈", "e\u0301", "a\u0308\u0323", "\u200d", "\ufe0f", "\u0301"),
    *("你好世界", "こんにちは", "한국어", "\u3000", "\x00", "\x00\x00", "\x7f", "\ufeff", "\ufffd", "▁", "Ġ"),
    *("\n", "\r\n", "\r", "\u2028", "\t", " ", "  ", "\xa0", "'s", "12", "3.14", "hello", " world", "the"),
]
texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), min_size=1, max_size=8).map("".join)
some_texts = texts.filter(lambda text: text != "")


@every_tokenizer
def test_text_without_a_reply_in_it_gets_exactly_the_tokenizers_ids(tmp_path: Path, make: Make) -> None:
    tokenizer = make()
    setup = Setup(tmp_path, lambda _: [40], tokenizer)

    @cases(60)
    @given(some_texts)
    @example("x" * 30_000)
    @example("\ufeff<|im_start|>user\r\n<|im_en")
    @example("🙂" * 6_000)
    def check(text: str) -> None:
        expected = tokenizer.encode(text).ids
        setup.send(text=text)
        assert setup.worker.sent[-1]["input_ids"] == expected
        found = setup.retrieve(text=text, return_logp=True)
        assert found.tokens[: len(expected)] == expected
        assert found.loss_mask[: len(expected)] == [0] * len(expected)

    check()


class Sampler:
    """Says what the test puts in `next_ids`."""

    def __init__(self) -> None:
        self.next_ids: list[int] = []

    def __call__(self, _: list[int]) -> list[int]:
        return self.next_ids


def ids_of_reply(tokenizer: tokenizers.Tokenizer, text: str, *, single: bool, stops: bool) -> list[int]:
    """Return a reply's ids: the tokenizer's own, or one character at a time."""
    parts = text if single else [text]
    ids = [each for part in parts for each in tokenizer.encode(part, add_special_tokens=False).ids]
    return [*ids, IM_END] if stops else ids


@lossless_tokenizer
def test_conversation_keeps_every_sampled_token_and_its_logprob(make: Make) -> None:
    tokenizer = make()
    end = tokenizer.id_to_token(IM_END)

    @cases(40)
    @given(
        some_texts,
        st.lists(st.tuples(some_texts, st.booleans(), st.booleans(), texts), min_size=1, max_size=4),
    )
    def check(prompt: str, turns: list[tuple[str, bool, bool, str]]) -> None:
        sampler = Sampler()
        with TemporaryDirectory() as folder:
            setup = Setup(Path(folder), sampler, tokenizer)
        text, known, sampled = prompt, list[int](), list[tuple[int, int, str]]()
        params = {"skip_special_tokens": False}
        for number, (reply_text, single, stops, observation) in enumerate(turns):
            setup.worker.weight_version = version = f"v{number}"
            sampler.next_ids = ids_of_reply(tokenizer, reply_text, single=single, stops=stops)
            reply = setup.send(text=text, rid=str(number), session_id="s", sampling_params=params)
            read = setup.worker.sent[-1]["input_ids"]
            assert read[: len(known)] == known
            known = read + reply["output_ids"]
            sampled.append((len(read), len(known), version))
            assert tokenizer.decode(read, skip_special_tokens=False) == text
            text += reply["text"] + (end if stops else "")
            found = setup.retrieve(rid=str(number), return_logp=True)
            assert found.tokens == known
            assert tokenizer.decode(found.tokens, skip_special_tokens=False) == text
            check_logprobs(found.tokens, found.loss_mask, found.rollout_logp, sampled)
            by_text = setup.retrieve(text=text, session_id="s", return_logp=True)
            assert (by_text.tokens, by_text.rollout_logp) == (found.tokens, found.rollout_logp)
            text += observation

    check()


def check_logprobs(
    tokens: list[int],
    mask: list[int],
    logprobs: list[float] | msgspec.UnsetType,
    sampled: list[tuple[int, int, str]],
) -> None:
    """Each sampled token has the log-probability that the worker gave it, and no other token has one."""
    assert isinstance(logprobs, list)
    assert len(tokens) == len(mask) == len(logprobs)
    expected, expected_mask = [0.0] * len(tokens), [0] * len(tokens)
    for start, end, version in sampled:
        for at in range(start, end):
            expected[at], expected_mask[at] = logprob(tokens[: at + 1], version), 1
    assert mask == expected_mask
    assert logprobs == expected


@pytest.mark.parametrize("make", [byte_fallback, unigram])
def test_conversation_of_a_tokenizer_that_puts_a_space_in_front_reads_as_it_was_written(make: Make) -> None:
    tokenizer = make()
    words = st.lists(
        st.sampled_from(["hello", " world", "the", "🙂", "e\u0301", "你好", "\n", "a", " ", "\x00", "1"]),
        min_size=1,
        max_size=5,
    ).map("".join)

    @cases(40)
    @given(words, st.lists(st.tuples(words, st.booleans(), words), min_size=1, max_size=3))
    def check(prompt: str, turns: list[tuple[str, bool, str]]) -> None:
        sampler = Sampler()
        with TemporaryDirectory() as folder:
            setup = Setup(Path(folder), sampler, tokenizer)
        text, known = prompt, list[int]()
        for number, (reply_text, single, observation) in enumerate(turns):
            parts = reply_text if single else [reply_text]
            encoded = (tokenizer.encode("\n" + part, add_special_tokens=False).ids[2:] for part in parts)
            sampler.next_ids = [each for ids in encoded for each in ids]
            reply = setup.send(text=text, rid=str(number))
            read = setup.worker.sent[-1]["input_ids"]
            assert tokenizer.decode(read) == text
            if reply["text"]:
                assert read[: len(known)] == known
                known = read + reply["output_ids"]
            text += reply["text"] + observation
            assert setup.retrieve(rid=str(number)).tokens == read + reply["output_ids"]

    check()


@pytest.mark.parametrize("escaped", [r"\ud800", r"hello \udfff", r"\ud83d\ud83d", r"\udc00\ud800"])
def test_half_of_a_surrogate_pair_passes_through_as_it_came(tmp_path: Path, escaped: str) -> None:
    middleware = RadixTreeMiddleware(tokenizer_path=saved(byte_level(), tmp_path))
    body = b'{"text": "%b", "later": [1]}' % escaped.encode()
    call = Call(method="POST", path="/generate", target=b"", headers=[], body=body, request_id="r")
    seen: list[Call] = []

    async def forward(forwarded: Call) -> Reply:
        seen.append(forwarded)
        return Reply(status=200, headers=[], body=b'{"text": "x"}')

    reply = asyncio.run(middleware(call, forward))
    assert [each.body for each in seen] == [body]
    assert reply.body == b'{"text": "x"}'
    assert middleware.stats()["radix_tree_cached_tokens"] == 0


@pytest.mark.parametrize("escaped", [r"\ud83d\ude42", r"\u0000", r"\ufeff", r"e\u0301"])
def test_escaped_character_is_the_same_as_the_character(tmp_path: Path, escaped: str) -> None:
    setup = Setup(tmp_path, lambda _: [40])
    text = msgspec.json.decode(f'"{escaped}"', type=str)
    body = b'{"text": "%b"}' % escaped.encode()
    call = Call(method="POST", path="/generate", target=b"", headers=[], body=body, request_id="r")
    asyncio.run(setup.middleware(call, setup.worker))
    assert setup.worker.sent[0]["input_ids"] == byte_level().encode(text).ids
    found = asyncio.run(retrieve(setup.middleware, text=text))
    assert found.tokens == byte_level().encode(text).ids
