import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from espalier.errors import ConfigError, DataError
from espalier.rollout import RolloutConfig, RolloutDataSource
from espalier.simulator import worker

CHECKPOINT = Path(worker.__file__).parent
"""The simulated worker's tokenizer: about a token a word, and a chat template."""

MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
TOOLS = [{"type": "function", "function": {"name": "search"}}]


def rows(folder: Path, *values: dict[str, Any]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in values))
    return path


def source(path: Path, **changes: Any) -> RolloutDataSource:
    return RolloutDataSource(RolloutConfig(prompt_data=path, n_samples_per_prompt=2, **changes))


def first_prompt(path: Path, **changes: Any) -> object:
    return source(path, **changes).get_samples(1)[0][0].prompt


def test_a_text_becomes_the_users_message_and_the_model_is_next(tmp_path: Path) -> None:
    path = rows(tmp_path, {"prompt": "hello"})
    chat = {"apply_chat_template": True, "hf_checkpoint": CHECKPOINT}
    assert first_prompt(path, **chat) == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert first_prompt(path) == "hello"


def test_messages_are_formatted_as_they_are(tmp_path: Path) -> None:
    path = rows(tmp_path, {"prompt": MESSAGES})
    expected = "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n"
    prompt = first_prompt(path, apply_chat_template=True, hf_checkpoint=CHECKPOINT)
    assert prompt == f"{expected}<|im_start|>assistant\n"


def test_messages_stay_messages_for_a_plug_in_that_reads_them(tmp_path: Path) -> None:
    path = rows(tmp_path, {"prompt": MESSAGES})
    one, other = source(path, custom_generate_function_path="any.function").get_samples(1)[0]
    assert one.prompt == MESSAGES
    assert one.prompt is not other.prompt
    with pytest.raises(DataError, match="line 1: 'prompt' must be a text; --apply-chat-template makes one"):
        source(path)


def checkpoint_with(folder: Path, template: str) -> Path:
    (folder / "tokenizer.json").write_bytes((CHECKPOINT / "tokenizer.json").read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return folder


@pytest.mark.parametrize("tools", [TOOLS, json.dumps(TOOLS)])
def test_tools_reach_the_template_and_the_sample(tmp_path: Path, tools: object) -> None:
    checkpoint = checkpoint_with(tmp_path, "{{ tools | tojson }}{{ mode }}")
    path = rows(tmp_path, {"prompt": "a", "functions": tools, "metadata": {"id": 1}})
    sample = source(
        path,
        tool_key="functions",
        apply_chat_template=True,
        apply_chat_template_kwargs='{"mode": "short"}',
        hf_checkpoint=checkpoint,
    ).get_samples(1)[0][0]
    assert sample.prompt == f"{json.dumps(TOOLS)}short"
    assert sample.metadata == {"id": 1, "tools": TOOLS}


def test_long_prompts_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = rows(tmp_path, *({"prompt": " ".join(["hello"] * count)} for count in (1, 40, 2)))
    settings = {"hf_checkpoint": CHECKPOINT, "rollout_max_prompt_len": 10}
    with caplog.at_level(logging.WARNING):
        data = source(path, **settings)
    assert [group[0].prompt for group in data.get_samples(3)] == ["hello", "hello hello", "hello"]
    assert "event=long_prompts_dropped dropped=1 kept=2 max_tokens=10" in caplog.text
    with pytest.raises(DataError, match="every prompt has more than --rollout-max-prompt-len 1 tokens"):
        source(Path(f"{path}@[1:2]"), **{**settings, "rollout_max_prompt_len": 1})


def test_a_prompt_is_as_long_as_what_the_template_makes_of_it(tmp_path: Path) -> None:
    path = rows(tmp_path, {"prompt": "hello"})
    settings = {"hf_checkpoint": CHECKPOINT, "rollout_max_prompt_len": 3}
    assert first_prompt(path, **settings) == "hello"
    with pytest.raises(DataError, match="every prompt"):
        source(path, apply_chat_template=True, **settings)


@pytest.mark.parametrize(
    ("row", "changes", "message"),
    [
        ({"prompt": []}, {}, "line 1: 'prompt' must be a text, or messages that each have a role"),
        ({"prompt": [{"content": "a"}]}, {}, "line 1: 'prompt' must be a text, or messages"),
        ({"prompt": 5}, {}, "line 1: 'prompt' must be a text that is not empty, or a list of messages"),
        ({"prompt": "a", "tools": "search"}, {}, "line 1: 'tools' must be a list of tools"),
        ({"prompt": [{"role": "user"}]}, {}, "line 1: the chat template cannot render the messages"),
    ],
)
def test_a_row_that_cannot_be_a_prompt_is_told(
    tmp_path: Path, row: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        source(rows(tmp_path, row), apply_chat_template=True, hf_checkpoint=CHECKPOINT)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"apply_chat_template": True}, "--apply-chat-template needs --hf-checkpoint"),
        ({"rollout_max_prompt_len": 5}, "--rollout-max-prompt-len needs --hf-checkpoint"),
        ({"rollout_max_prompt_len": 0}, "--rollout-max-prompt-len must be at least 1"),
        ({"apply_chat_template_kwargs": "[1]"}, "--apply-chat-template-kwargs: expected a JSON object"),
    ],
)
def test_a_setting_that_lacks_what_it_needs_is_told(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        source(rows(tmp_path, {"prompt": "a"}), **changes)


def test_parquet_rows_are_told_by_number(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a", "b", None]}), path)
    assert first_prompt(Path(f"{path}@[1:2]")) == "b"
    with pytest.raises(DataError, match=r"rows\.parquet, row 3: 'prompt' must be a text"):
        source(path)


def test_settings_may_be_slimes_own(tmp_path: Path) -> None:
    path = rows(tmp_path, {"input": MESSAGES})
    args: Any = SimpleNamespace(
        prompt_data=str(path),
        input_key="input",
        label_key=None,
        metadata_key="metadata",
        tool_key=None,
        apply_chat_template=True,
        apply_chat_template_kwargs={"enable_thinking": False},
        multimodal_keys=None,
        hf_checkpoint=str(CHECKPOINT),
        rollout_max_prompt_len=None,
        rollout_seed=1,
        rollout_shuffle=True,
        n_samples_per_prompt=3,
        custom_generate_function_path=None,
        rollout_function_path="slime.rollout.sglang_rollout.generate_rollout",
        save=str(tmp_path),
        load=str(tmp_path),
    )
    data = RolloutDataSource(args)
    data.save(0)
    assert data.load(0) == 0
    assert str(data.get_samples(1)[0][2].prompt).startswith("<|im_start|>system\nbe brief")
