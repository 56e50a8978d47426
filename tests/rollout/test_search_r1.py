"""The example of a model that searches: its data, its search engine, its reward, and a rollout of it."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from espalier.rollout import Sample, Status, generate_rollout, rollout_state
from espalier.rollout.data_source import RolloutDataSource
from espalier.rollout.tokenizer import load_tokenizer
from espalier.rollout.tool_calling import EndedBy, exchange_of
from espalier.simulator.tokenizer import FOLDER
from examples.search_r1.bm25 import Index, Passage
from examples.search_r1.make_data import main
from examples.search_r1.reward import answer_reward
from examples.search_r1.search import search
from tests.simulator.workers import INSTANT
from tests.test_rollouts import config_of, fleet

EXAMPLE = Path(__file__).parents[2] / "examples" / "search_r1"
SETTINGS: dict[str, Any] = {
    "prompt_data": EXAMPLE / "questions.jsonl",
    "hf_checkpoint": FOLDER,
    "apply_chat_template": True,
    "custom_generate_function_path": "tool_calling",
    "tools": ("examples.search_r1.search:search",),
    "custom_rm_path": "examples.search_r1.reward:answer_reward",
    "rm_type": None,
}


def test_the_script_makes_the_shipped_data(tmp_path: Path) -> None:
    main(tmp_path)
    for name in ("corpus.jsonl", "questions.jsonl"):
        assert (tmp_path / name).read_bytes() == (EXAMPLE / name).read_bytes()


def test_every_question_is_answered_by_what_is_found_first() -> None:
    for line in (EXAMPLE / "questions.jsonl").read_text(encoding="utf-8").splitlines():
        problem = json.loads(line)
        question = problem["prompt"][0]["content"].splitlines()[-1]
        first = search(question, k=1)
        assert any(label in first for label in problem["label"])


def test_rare_words_short_passages_and_repetition_count() -> None:
    index = Index(
        [Passage("a", "red red fox"), Passage("b", "red fox"), Passage("c", "red dog"), Passage("d", "red")]
    )
    assert [passage.title for passage in index.search("FOX", 9)] == ["b", "a"]
    assert [passage.title for passage in index.search("red", 2)] == ["a", "d"]
    assert index.search("red dog!", 1)[0].title == "c"
    assert index.search("cat", 3) == Index([]).search("red", 3) == []


def test_the_model_searches_reads_and_is_rewarded_for_its_answer(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(FOLDER)
    with fleet(**INSTANT, accuracy=0.5) as (url, _):
        config = config_of(url, tmp_path, **SETTINGS, rollout_batch_size=12, n_samples_per_prompt=8)
        output = generate_rollout(config, 0, RolloutDataSource(config))
    samples = [sample for group in output.samples for sample in group]
    assert len(samples) == 96
    for sample in samples:
        check_turns(sample, tokenizer)
    assert {len(exchange_of(sample).turns) for sample in samples} >= {2, 3}
    assert {0.0, 1.0} <= {sample.reward for sample in samples if isinstance(sample.reward, float)}
    for sample in samples:
        answer = re.search(r"<answer>(.*)</answer>", sample.response)
        is_right = answer is not None and answer[1] in sample.label
        assert (sample.reward == 1.0) == is_right


def check_turns(sample: Sample, tokenizer: Any) -> None:
    """Check the sample's tokens, mask and status against what its turns say."""
    sample.validate()
    exchange = exchange_of(sample)
    prompt = tokenizer.encode(sample.prompt)
    assert sample.tokens[: len(prompt)] == prompt
    response = sample.tokens[len(prompt) :]
    assert len(response) == sample.response_length
    mask: list[int] = []
    for turn in exchange.turns:
        assert (turn.start, turn.end is not None) == (len(mask), True)
        observed = turn.observation_tokens or 0
        mask += [1] * ((turn.end or 0) - turn.start) + [0] * observed
        said = tokenizer.decode(response[turn.start : turn.end])
        if turn is not exchange.turns[-1] or sample.status is Status.COMPLETED:  # else it was cut off
            assert ("<tool_call>" in said) == bool(turn.calls)
        answer = response[turn.end : len(mask)]
        assert tokenizer.encode(tokenizer.decode(answer)) == answer
        if observed:
            told = tokenizer.decode(answer)
            assert told.startswith("\n<|im_start|>user\n<tool_response>\n")
            assert ("Error: the call" in told) == bool(turn.bad_calls)
            assert "chemical" in told or "country" in told or turn.bad_calls
    assert sample.loss_mask == mask
    assert sample.rollout_log_probs is not None
    assert all(
        (log_prob < 0) == bool(bit) for log_prob, bit in zip(sample.rollout_log_probs, mask, strict=True)
    )
    ended = {EndedBy.ANSWER: Status.COMPLETED, EndedBy.RESPONSE_LENGTH: Status.TRUNCATED}
    assert exchange.ended_by is not None
    assert sample.status is ended[exchange.ended_by]


@pytest.mark.parametrize(
    ("said", "reward"),
    [
        ("<answer>The Iron.</answer>", 1.0),
        ("<answer>zinc</answer> or rather <answer>iron</answer>", 1.0),
        ("<answer>iron ore</answer>", 0.5 * 2 / 3),
        ("<answer>zinc</answer>", 0.0),
        ("iron", 0.0),
    ],
)
def test_only_the_last_answer_of_the_last_turn_counts(tmp_path: Path, said: str, reward: float) -> None:
    config = config_of("http://127.0.0.1:9", tmp_path, **SETTINGS)
    read, spoken = (load_tokenizer(FOLDER).encode(text) for text in ("<answer>iron</answer>", said))
    turns = [
        {"start": 0, "end": 0, "observation_tokens": len(read)},
        {"start": len(read), "end": len(read) + len(spoken)},
    ]
    sample = Sample(
        tokens=[5, *read, *spoken],
        response_length=len(read) + len(spoken),
        label=["Iron"],
        metadata={"tool_calling": {"turns": turns}},
    )

    async def graded() -> float:
        async with rollout_state(config):
            return await answer_reward(config, sample)

    assert asyncio.run(graded()) == pytest.approx(reward)
