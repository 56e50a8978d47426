"""An exchange with tools is exactly what real SGLang workers read and sampled, and its tools answered."""

import json
from pathlib import Path

import pytest

from espalier.rollout import RolloutConfig, RolloutDataSource, Sample, generate_rollout
from espalier.rollout.tokenizer import PromptTokenizer, load_tokenizer
from espalier.rollout.tool_calling import EndedBy, exchange_of
from espalier.rollout.tool_calls import ToolCall
from tests.engine.workers import EngineWorker
from tests.test_exact_tokens import router
from tests.witness import Witness

pytestmark = pytest.mark.engine

HERE = __name__
TURNS = 4
STOP_IDS = tuple(str(token) for token in range(3, 1024, 8))
"""One in eight of the model's tokens: its weights are random, and so it ends its turns at random."""


def length_of(text: str) -> str:
    """Tell how long a text is."""
    return f"It has {len(text)} characters."


def asks_at_each_turn(text: str) -> list[ToolCall]:
    """Stand in for a model that was trained to call tools."""
    return [ToolCall(name="length_of", arguments={"text": text})]


def test_every_turn_reads_the_tokens_so_far_and_what_was_observed(
    engine_workers: tuple[EngineWorker, ...], tmp_path: Path
) -> None:
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"How long is {n}?"}) + "\n" for n in range(4)))
    model = engine_workers[0].model
    with router(engine_workers) as (url, seen):
        config = RolloutConfig(
            router_url=url,
            prompt_data=data,
            output_dir=tmp_path / "out",
            hf_checkpoint=model,
            apply_chat_template=True,
            custom_generate_function_path="tool_calling",
            tools=(f"{HERE}:length_of",),
            tool_parser=f"{HERE}:asks_at_each_turn",
            tool_max_turns=TURNS,
            rollout_stop_token_ids=STOP_IDS,
            rollout_batch_size=4,
            n_samples_per_prompt=4,
            rm_type="digit_share",
        )
        output = generate_rollout(config, 0, RolloutDataSource(config))
    samples = [sample for group in output.samples for sample in group]
    assert len(samples) == 16
    for sample in samples:
        assert exchange_of(sample).ended_by is EndedBy.MAX_TURNS
        check_exchange(sample, seen, load_tokenizer(model))


def check_exchange(sample: Sample, seen: Witness, tokenizer: PromptTokenizer) -> None:
    """Rebuild the sample from what the workers were asked and said, turn by turn, and compare."""
    tokens = tokenizer.encode(str(sample.prompt))
    start = len(tokens)
    mask, log_probs = list[int](), list[float]()
    assert sample.rollout_log_probs is not None
    for turn in exchange_of(sample).turns:
        rid = next(
            rid
            for rid, asked in seen.asked.items()
            if asked["input_ids"] == tokens
            and seen.read_and_sampled(rid) == sample.tokens[: start + (turn.end or 0)]
            and seen.logprobs(rid) == sample.rollout_log_probs[turn.start : turn.end]
        )
        sampled = seen.said[rid]["output_ids"]
        tokens, mask, log_probs = tokens + sampled, mask + [1] * len(sampled), log_probs + seen.logprobs(rid)
        if turn.observation_tokens is not None:
            said = tokenizer.decode(sampled)
            ending = "\n" if said.endswith("<|im_end|>") else "<|im_end|>\n"
            observed = tokenizer.encode(
                f"{ending}<|im_start|>tool\n{length_of(said)}<|im_end|>\n<|im_start|>assistant\n"
            )
            tokens, mask = tokens + observed, mask + [0] * len(observed)
            log_probs += [0.0] * len(observed)
    assert (sample.tokens, sample.loss_mask, sample.rollout_log_probs) == (tokens, mask, log_probs)
    assert len(sample.weight_versions) == TURNS
