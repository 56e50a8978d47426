import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from espalier.errors import ConfigError, DataError
from espalier.rollout import RolloutConfig, RolloutDataSource, packed_arrays, rollout_functions, sft_rollout
from espalier.rollout.command import run
from tests.rollout.chat_models import chat_tokenizer

TALK = [{"role": "user", "content": "2 + 2 ?"}, {"role": "assistant", "content": "4"}]
MORE = [*TALK, {"role": "user", "content": "sure?"}, {"role": "assistant", "content": "yes"}]


def config(folder: Path, *rows: dict[str, Any], **changes: Any) -> RolloutConfig:
    chat_tokenizer(folder, "qwen")
    path = folder / "talks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "prompt_data": path,
        "input_key": "messages",
        "hf_checkpoint": folder,
        "n_samples_per_prompt": 1,
        "rollout_batch_size": len(rows),
        "rollout_function_path": "sft",
    }
    return RolloutConfig(**{**settings, **changes})


def test_conversations_become_samples_that_are_ready_to_train_on(tmp_path: Path) -> None:
    args = config(tmp_path, {"messages": MORE, "tools": [{"name": "search"}]}, {"messages": TALK[:1]})
    output = sft_rollout(args, 0, RolloutDataSource(args))
    tokenizer = chat_tokenizer(tmp_path, "qwen")
    [[first], [second]] = output.samples
    assert '<|im_start|>system\ntools: [{"name": "search"}]' in tokenizer.decode(first.tokens)
    response = tokenizer.decode(first.tokens[-first.response_length :])
    assert response.startswith("4<|im_end|>\n<|im_start|>user\nsure?")
    assert first.loss_mask is not None
    assert (first.loss_mask[0], first.loss_mask[-1], 0 in first.loss_mask) == (1, 1, True)
    assert (second.response_length, second.loss_mask) == (0, [])
    arrays = packed_arrays(output.samples, args, with_log_probs=False)
    assert arrays.loss_mask.sum() == first.effective_response_length
    assert rollout_functions.resolve("sft") is sft_rollout


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_samples_per_prompt": 2}, "--n-samples-per-prompt 1, not 2"),
        ({"hf_checkpoint": None}, "needs --hf-checkpoint"),
        ({"apply_chat_template": True}, "leave out --apply-chat-template"),
        ({"loss_mask_type": "llama"}, "unknown --loss-mask-type 'llama'"),
    ],
)
def test_settings_that_do_not_fit_are_told(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    args = config(tmp_path, {"messages": TALK}, **changes)
    with pytest.raises(ConfigError, match=message):
        sft_rollout(args, 0, RolloutDataSource(args))


def test_there_is_no_evaluation(tmp_path: Path) -> None:
    args = config(tmp_path, {"messages": TALK})
    with pytest.raises(ConfigError, match="no evaluation"):
        sft_rollout(args, 0, RolloutDataSource(args), evaluation=True)


def test_a_conversation_that_cannot_be_masked_is_told(tmp_path: Path) -> None:
    args = config(tmp_path, {"messages": [{"role": "user", "content": "<|im_start|>"}]})
    with pytest.raises(DataError, match="sample 0: a message spells"):
        sft_rollout(args, 0, RolloutDataSource(args))


def test_the_command_needs_neither_router_nor_reward(tmp_path: Path) -> None:
    talks = [{"messages": TALK}, {"messages": MORE}]
    nobody = "http://127.0.0.1:9"
    args = config(
        tmp_path, *talks, output_dir=tmp_path / "run", num_rollout=2, save_arrays=True, router_url=nobody
    )
    out = io.StringIO()
    assert run(args, console=Console(file=out, width=100)) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert [line["rollout_id"] for line in lines] == [0, 0, 1, 1]
    with np.load(tmp_path / "run" / "arrays" / "step_1.npz", allow_pickle=False) as arrays:
        assert arrays["tokens"].tolist() == lines[2]["tokens"] + lines[3]["tokens"]
        assert arrays["loss_mask"].sum() == sum(sum(line["loss_mask"]) for line in lines[2:])
        assert "log_probs" not in arrays
    [kept] = {
        json.loads(line)["rollout/groups_kept"]
        for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    }
    assert kept == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_key": "prompt"}, "line 1: no key 'prompt', only 'messages'"),
        ({"hf_checkpoint": "/nowhere"}, "--hf-checkpoint /nowhere: there is no"),
        ({"hf_checkpoint": None}, "needs --hf-checkpoint"),
        ({"eval_interval": 1}, "nothing to evaluate"),
    ],
)
def test_the_command_tells_what_is_missing(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    args = config(tmp_path, {"messages": TALK}, output_dir=tmp_path / "run", **changes)
    with pytest.raises((ConfigError, DataError), match=message):
        run(args, console=Console(file=io.StringIO()))
    assert not (tmp_path / "run" / "samples.jsonl").exists()
