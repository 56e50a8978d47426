import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from espalier.errors import ConfigError
from espalier.rollout import (
    GenerateState,
    RolloutConfig,
    Sample,
    Status,
    generate,
    generate_and_rm,
    rollout_state,
)
from espalier.rollout.tokenizer import load_tokenizer
from tests.rollout.fake_router import (
    STOP_TOKEN,
    FakeRouter,
    Generation,
    Json,
    Scripted,
    log_prob,
    prompt_tokens,
    token_of,
)

HERE = __name__
MakeConfig = Callable[..., RolloutConfig]


def sample_of(prompt: str = "user question ?", **fields: Any) -> Sample:
    return Sample(index=5, prompt=prompt, label="4", **fields)


def generated(config: RolloutConfig, sample: Sample) -> Sample:
    result = asyncio.run(generate_and_rm(config, sample, config.sampling_params()))
    assert isinstance(result, Sample)
    return result


@pytest.fixture
def tokenizer_file(tmp_path: Path) -> Path:
    vocabulary = {"[UNK]": 0, "user": 101, "question": 102, "?": 103}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_text_in_gives_the_recorded_prompt_and_the_sampled_tokens(
    fake: FakeRouter, make_config: MakeConfig
) -> None:
    fake.generation = lambda _: Generation(["It", " is", " \\boxed{4}"])
    sample = generated(make_config(), sample_of())
    prompt = prompt_tokens("user question ?")
    response = [token_of("It"), token_of(" is"), token_of(" \\boxed{4}"), STOP_TOKEN]
    assert sample.tokens == prompt + response
    assert sample.rollout_log_probs == [
        log_prob(token, len(prompt) + position) for position, token in enumerate(response)
    ]
    assert sample.loss_mask == [1, 1, 1, 1]
    assert (sample.response, sample.response_length) == ("It is \\boxed{4}", 4)
    assert (sample.status, sample.reward) == (Status.COMPLETED, 1.0)
    assert sample.weight_versions == ["7"]


def test_request_asks_for_log_probs_with_slimes_sampling_parameters(
    fake: FakeRouter, make_config: MakeConfig
) -> None:
    config = make_config(rollout_stop=("\n",), rollout_stop_token_ids=("2", "3"), rollout_top_p=0.5)
    generated(config, sample_of(session_id="s1"))
    [request] = fake.requests
    assert request["return_logprob"] is True
    assert request["text"] == "user question ?"
    assert len(request["rid"]) == 32
    assert request["sampling_params"] == {
        "temperature": 1.0,
        "top_p": 0.5,
        "top_k": -1,
        "max_new_tokens": 1024,
        "stop": ["\n"],
        "stop_token_ids": [2, 3],
        "skip_special_tokens": False,
        "no_stop_trim": True,
        "spaces_between_special_tokens": False,
    }
    assert fake.headers[0]["x-smg-routing-key"] == "s1"


def test_tokens_in_with_a_tokenizer_needs_no_tree(
    fake: FakeRouter, make_config: MakeConfig, tokenizer_file: Path
) -> None:
    fake.has_tree = False
    for path in (tokenizer_file, tokenizer_file.parent):
        sample = generated(make_config(hf_checkpoint=path), sample_of())
        assert fake.requests[-1]["input_ids"] == [101, 102, 103]
        assert "text" not in fake.requests[-1]
        assert sample.tokens[:3] == [101, 102, 103]
        assert sample.status is Status.COMPLETED


def test_a_tokenizer_that_is_not_there_or_broken_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--hf-checkpoint"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="--hf-checkpoint"):
        load_tokenizer(tmp_path)


def test_an_aborted_sample_goes_on_from_its_tokens_with_the_rest_of_its_budget(
    fake: FakeRouter, make_config: MakeConfig
) -> None:
    config = make_config(rollout_max_response_len=10)
    fake.generation = lambda _: Generation(["One", " two"], finish="abort")
    sample = generated(config, sample_of())
    assert (sample.status, sample.reward, sample.response_length) == (Status.ABORTED, None, 2)
    so_far = list(sample.tokens)
    fake.generation = lambda _: Generation([" \\boxed{4}"])
    sample = generated(config, sample)
    assert fake.requests[-1]["input_ids"] == so_far
    assert fake.requests[-1]["sampling_params"]["max_new_tokens"] == 8
    assert sample.response == "One two \\boxed{4}"
    assert (sample.response_length, sample.loss_mask, sample.reward) == (4, [1] * 4, 1.0)
    assert sample.weight_versions == ["7", "7"]


def test_without_any_budget_left_nothing_is_sent(fake: FakeRouter, make_config: MakeConfig) -> None:
    config = make_config(rollout_max_response_len=1)
    sample = sample_of(tokens=[1, 9], response_length=1, loss_mask=[1], rollout_log_probs=[-1.0])
    sample.status = Status.ABORTED
    assert generated(config, sample).status is Status.TRUNCATED
    assert fake.requests == []


def test_a_request_aborted_before_its_first_token_leaves_the_sample_as_it_was(
    fake: FakeRouter, make_config: MakeConfig
) -> None:
    fake.generation = lambda _: Generation([], finish="abort")
    sample = generated(make_config(), sample_of())
    assert (sample.status, sample.tokens, sample.response_length) == (Status.ABORTED, [], 0)


def change_meta(**changes: Any) -> Callable[[Json], Json]:
    return lambda reply: {**reply, "meta_info": {**reply["meta_info"], **changes}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_meta(output_token_logprobs=None), "no log-probabilities"),
        (change_meta(output_token_logprobs=[[None, 5, None]]), "no number"),
        (lambda reply: {**reply, "output_ids": [5]}, "other tokens than its output_ids"),
        (change_meta(finish_reason=None), "does not tell why it ended"),
        (change_meta(finish_reason={"type": "bored"}), "unknown finish reason 'bored'"),
        (lambda reply: {**reply, "text": None}, "has no tokenizer"),
    ],
)
def test_a_reply_that_lacks_what_it_must_have_fails_the_sample(
    fake: FakeRouter, make_config: MakeConfig, change: Callable[[Json], Json], message: str
) -> None:
    fake.change_reply = change
    sample = generated(make_config(), sample_of())
    assert (sample.status, sample.reward) == (Status.FAILED, None)
    assert message in sample.metadata["error"]
    assert (sample.tokens, sample.response_length, sample.rollout_log_probs) == ([], 0, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: {**record, "tokens": [*record["tokens"][:-1], 99]}, "other tokens"),
        (lambda r: {**r, "rollout_logp": [*r["rollout_logp"][:-1], -9.0]}, "other log-probabilities"),
        (lambda r: {**r, "loss_mask": [*r["loss_mask"][:-1], 0]}, "other loss mask"),
        (lambda r: {**r, "loss_mask": []}, "differ in length"),
        (lambda _: {"tokens": [2], "loss_mask": [1], "rollout_logp": [-1.0]}, "recorded 1 tokens"),
        (
            lambda r: {key: r[key][4:] for key in ("tokens", "loss_mask", "rollout_logp")},
            "recorded no prompt",
        ),
    ],
)
def test_recorded_tokens_that_are_not_those_of_the_reply_fail_the_sample(
    fake: FakeRouter, make_config: MakeConfig, change: Callable[[Json], Json], message: str
) -> None:
    fake.change_record = change
    sample = generated(make_config(), sample_of())
    assert sample.status is Status.FAILED
    assert sample.metadata["error_code"] == "token_mismatch"
    assert message in sample.metadata["error"]


def test_a_prompt_that_the_worker_cut_fails_the_sample(
    fake: FakeRouter, make_config: MakeConfig, tokenizer_file: Path
) -> None:
    fake.change_reply = change_meta(prompt_tokens=2)
    sample = generated(make_config(hf_checkpoint=tokenizer_file), sample_of())
    assert (sample.status, sample.tokens) == (Status.FAILED, [])
    assert "read 2 prompt tokens, though 3 were sent" in sample.metadata["error"]


def test_tokens_that_the_tree_dropped_already_name_the_setting_that_is_too_small(
    fake: FakeRouter, make_config: MakeConfig
) -> None:
    fake.scripted["/retrieve_from_text"] = [Scripted(404, {"error": {"message": "it has been evicted"}})]
    sample = generated(make_config(), sample_of())
    assert sample.metadata["error_code"] == "not_recorded"
    assert "radix_tree.max_cached_tokens=N" in sample.metadata["error"]


@pytest.mark.parametrize("prompt", ["", [{"role": "user", "content": "hi"}]])
def test_a_prompt_that_cannot_be_sent_fails_the_sample(
    fake: FakeRouter, make_config: MakeConfig, prompt: Any
) -> None:
    assert "prompt" in generated(make_config(), Sample(prompt=prompt)).metadata["error"]
    assert fake.requests == []


def test_a_finished_sample_is_only_rewarded(fake: FakeRouter, make_config: MakeConfig) -> None:
    sample = sample_of(response=r"\boxed{4}", status=Status.COMPLETED)
    assert generated(make_config(), sample).reward == 1.0
    assert fake.requests == []
    with pytest.raises(Exception, match="is completed already"):
        asyncio.run(generate(make_config(), sample, make_config().sampling_params()))


def test_two_rollouts_in_one_process_do_not_share_their_state(make_config: MakeConfig) -> None:
    async def own() -> int:
        async with rollout_state(make_config()) as state:
            await asyncio.sleep(0)
            assert GenerateState(make_config()) is state
            return id(state)

    async def both() -> list[int]:
        return list(await asyncio.gather(own(), own()))

    first, second = asyncio.run(both())
    assert first != second
    with pytest.raises(RuntimeError, match="rollout_state"):
        GenerateState(make_config())


def test_sampling_parameters_come_out_as_json(make_config: MakeConfig) -> None:
    assert json.loads(json.dumps(make_config().sampling_params())) == make_config().sampling_params()
