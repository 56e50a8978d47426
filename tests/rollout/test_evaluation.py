import asyncio
import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from espalier.errors import ConfigError, DataError, RolloutError
from espalier.rollout import (
    RolloutConfig,
    RolloutDataSource,
    RolloutFnEvalOutput,
    Sample,
    eval_rollout,
    generate_rollout,
)
from espalier.rollout.command import run
from espalier.rollout.eval_sets import eval_sets
from espalier.rollout.metrics import pass_at_k
from tests.rollout.fake_router import FakeRouter, Generation, Json, Scripted

HERE = __name__
MakeConfig = Callable[..., RolloutConfig]


@pytest.fixture
def easy(tmp_path: Path) -> Path:
    path = tmp_path / "easy.jsonl"
    lines = [{"question": f"easy {number} ?", "gold": "4"} for number in range(3)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def two_sets(tmp_path: Path, easy: Path, dataset: Path) -> Path:
    path = tmp_path / "eval.yaml"
    path.write_text(
        f"""
eval:
  defaults:
    temperature: 0.25
    n_samples_per_eval_prompt: 2
  datasets:
    - name: easy
      path: {easy}
      input_key: question
      label_key: gold
      max_response_len: 7
      n_samples_per_eval_prompt: 4
      repetition_penalty: 1.5
      metadata_overrides: {{level: low}}
    - name: all
      path: {dataset}
      temperature: 0.0
      rm_type: digit_share
"""
    )
    return path


def evaluated(config: RolloutConfig) -> RolloutFnEvalOutput:
    return asyncio.run(eval_rollout(config, 7))


def of_set(fake: FakeRouter, word: str) -> list[Json]:
    return [request for request in fake.requests if request["text"].startswith(word)]


def test_each_set_is_sampled_with_what_it_has_of_its_own(
    fake: FakeRouter, make_config: MakeConfig, two_sets: Path
) -> None:
    output = evaluated(make_config(eval_config=two_sets, rollout_top_p=0.5))
    assert list(output.data) == ["easy", "all"]
    assert len(of_set(fake, "easy")) == 3 * 4
    assert len(of_set(fake, "user")) == 12 * 2
    params = of_set(fake, "easy")[0]["sampling_params"]
    assert (params["temperature"], params["max_new_tokens"]) == (0.25, 7)
    assert (params["repetition_penalty"], params["top_p"]) == (1.5, 0.5)
    params = of_set(fake, "user")[0]["sampling_params"]
    assert (params["temperature"], params["max_new_tokens"]) == (0.0, 1024)
    assert "repetition_penalty" not in params
    easy, everything = output.data["easy"], output.data["all"]
    for sample, reward in zip(easy["samples"], easy["rewards"], strict=True):
        assert sample.metadata == {"level": "low"}
        assert reward == float(r"\boxed{4}" in sample.response)
    assert all(0 < reward < 1 for reward in everything["rewards"])
    assert [sample.metadata["id"] for sample in everything["samples"][::2]] == list(range(12))


def test_metrics_are_told_by_set(fake: FakeRouter, make_config: MakeConfig, easy: Path) -> None:
    answers = itertools.cycle([" \\boxed{4}", " \\boxed{5}", " \\boxed{5}", " \\boxed{5}"])

    def generation(payload: Json) -> Generation:
        word = next(answers)
        return Generation([word], "stop" if "4" in word else "length")

    fake.generation = generation
    config = make_config(
        eval_prompt_data=("easy", str(easy)),
        eval_input_key="question",
        eval_label_key="gold",
        n_samples_per_eval_prompt=4,
        sglang_server_concurrency=1,
        rollout_deterministic=False,
    )
    output = evaluated(config)
    metrics = output.metrics or {}
    assert metrics["eval/easy"] == metrics["eval/easy-pass@1"] == 0.25
    assert metrics["eval/easy-pass@2"] == 0.5
    assert metrics["eval/easy-pass@4"] == 1.0
    assert metrics["eval/easy-truncated_ratio"] == 0.75
    assert metrics["eval/easy/response_len/max"] == 2
    assert metrics["eval/easy/missing_samples"] == 0
    assert sum(output.data["easy"]["truncated"]) == 9


def test_every_sample_is_written_by_set(make_config: MakeConfig, two_sets: Path) -> None:
    config = make_config(eval_config=two_sets)
    evaluated(config)
    for name, count in (("easy", 12), ("all", 24)):
        lines = (config.output_dir / "eval" / f"7-{name}.jsonl").read_text().splitlines()
        assert len(lines) == count
        assert {json.loads(line)["rollout_id"] for line in lines} == {7}
    assert sorted(path.name for path in (config.output_dir / "eval").iterdir()) == [
        "7-all.jsonl",
        "7-easy.jsonl",
    ]
    evaluated(make_config(eval_config=two_sets, eval_dump=False, output_dir=config.output_dir / "other"))
    assert not (config.output_dir / "other").exists()


def test_a_sample_that_could_not_be_had_is_in_no_mean_and_counted(
    fake: FakeRouter, make_config: MakeConfig, dataset: Path
) -> None:
    fake.generation = lambda _: Generation([" \\boxed{4}"])
    fake.scripted["/generate"] = [Scripted(400, "no"), Scripted(400, "no")]
    config = make_config(eval_prompt_data=("all", str(dataset)), n_samples_per_eval_prompt=2)
    output = evaluated(config)
    metrics = output.metrics or {}
    assert (metrics["eval/all"], metrics["eval/all-pass@1"]) == (1.0, 1.0)
    assert metrics["eval/all/missing_samples"] == 2
    assert len(output.data["all"]["samples"]) == len(output.data["all"]["rewards"]) == 22


def test_a_set_of_which_nothing_could_be_had_ends_in_an_error(
    fake: FakeRouter, make_config: MakeConfig, dataset: Path
) -> None:
    fake.scripted["/generate"] = [Scripted(400, {"error": {"message": "bad temperature"}})] * 12
    with pytest.raises(RolloutError, match=r"'all': no sample could be had: .* 400: bad temperature"):
        evaluated(make_config(eval_prompt_data=("all", str(dataset))))


async def raising_generate(args: RolloutConfig, sample: Sample, sampling_params: dict[str, Any]) -> Sample:
    if sample.index == 0:
        raise ZeroDivisionError("one over none")
    sample.status, sample.tokens, sample.response_length = Sample.Status.COMPLETED, [1, 2], 1
    return sample


def test_a_group_that_raises_does_not_end_the_evaluation(
    fake: FakeRouter, make_config: MakeConfig, dataset: Path
) -> None:
    config = make_config(
        eval_prompt_data=("all", str(dataset)),
        custom_generate_function_path=f"{HERE}:raising_generate",
        rm_type="random",
    )
    output = evaluated(config)
    assert (output.metrics or {})["eval/all/missing_samples"] == 1
    assert fake.requests == []


def test_a_set_may_have_a_generate_function_of_its_own(
    fake: FakeRouter, make_config: MakeConfig, tmp_path: Path, dataset: Path
) -> None:
    path = tmp_path / "own.yaml"
    own = f"{{name: own, path: {dataset}, custom_generate_function_path: '{HERE}:raising_generate'}}"
    path.write_text(f"eval: {{datasets: [{own}, {{name: usual, path: {dataset}}}]}}")
    evaluated(make_config(eval_config=path, rm_type="random"))
    assert len(fake.requests) == 12


def test_the_rollout_function_evaluates_when_asked(make_config: MakeConfig, two_sets: Path) -> None:
    config = make_config(eval_config=two_sets)
    output = generate_rollout(config, 0, RolloutDataSource(config), evaluation=True)
    assert isinstance(output, RolloutFnEvalOutput)
    with pytest.raises(ConfigError, match="give --eval-prompt-data or --eval-config"):
        generate_rollout(make_config(), 0, RolloutDataSource(config), evaluation=True)


def test_the_command_evaluates_after_every_so_many_steps(make_config: MakeConfig, two_sets: Path) -> None:
    out = io.StringIO()
    config = make_config(num_rollout=3, eval_config=two_sets, eval_interval=2)
    assert run(config, console=Console(file=out, width=100)) == 0
    lines = [json.loads(line) for line in (config.output_dir / "metrics.jsonl").read_text().splitlines()]
    assert [(line["rollout_id"], "eval/easy" in line) for line in lines] == [
        (0, False),
        (1, False),
        (1, True),
        (2, False),
    ]
    assert "evaluation after step 2" in out.getvalue()
    assert "eval/easy-pass@4" in out.getvalue()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("eval: {datasets: [{name: a}]}", r"missing required field `path` - at `\$.eval.datasets"),
        ("eval: {datasets: [], defaults: {temprature: 1}}", "unknown field `temprature` - at `\\$.eval.def"),
        ("eval: {datasets: [{name: a, path: x, top_k: many}]}", "Expected `int | null`, got `str`"),
        ("eval: [", "--eval-config .*eval.yaml: while parsing"),
        ("eval: {datasets: [{name: a/b, path: x}]}", "'a/b': a name has letters"),
        ("eval: {datasets: [{name: a, path: x}, {name: a, path: y}]}", "two evaluation sets are called 'a'"),
        ("eval: {datasets: [{name: a, path: x, top_p: 2}]}", "'a': --rollout-top-p must be"),
    ],
)
def test_a_wrong_file_is_told_with_the_place(
    make_config: MakeConfig, tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "eval.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message.replace("|", r"\|")):
        eval_sets(make_config(eval_config=path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "give --eval-prompt-data or --eval-config"),
        ({"eval_prompt_data": ("a",)}, "pairs of a name and a path, not 1 words"),
        ({"eval_config": Path("/no/such.yaml")}, "--eval-config /no/such.yaml: No such file"),
        ({"eval_prompt_data": ("a", "/no/such.jsonl")}, "/no/such.jsonl: No such file"),
    ],
)
def test_an_evaluation_that_cannot_be_is_told_before_any_work(
    fake: FakeRouter, make_config: MakeConfig, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        run(make_config(eval_interval=1, **changes), console=Console(file=io.StringIO()))
    assert fake.requests == []


def test_group_rewards_are_for_training_only(make_config: MakeConfig, dataset: Path) -> None:
    training = {"group_rm": True, "custom_rm_path": f"{HERE}:raising_generate", "rm_type": None}
    with pytest.raises(ConfigError, match="'a' needs an rm_type of its own"):
        eval_sets(make_config(eval_prompt_data=("a", str(dataset)), **training))


def test_pass_at_k_is_the_share_of_draws_with_a_correct_sample() -> None:
    for n in range(1, 7):
        for c in range(n + 1):
            for k in range(1, n + 1):
                draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
                assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws))


@pytest.mark.parametrize(("n", "c", "k"), [(2, 1, 3), (2, 3, 1), (2, 1, 0), (2, -1, 1)])
def test_pass_at_k_of_what_cannot_be_is_refused(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="pass@"):
        pass_at_k(n, c, k)


def test_a_set_has_a_chat_template_and_tools_of_its_own(
    make_config: MakeConfig, tmp_path: Path, dataset: Path
) -> None:
    path = tmp_path / "eval.yaml"
    own = "apply_chat_template: true, apply_chat_template_kwargs: {thinking: false}, tool_key: abilities"
    path.write_text(
        f"eval: {{datasets: [{{name: own, path: {dataset}, {own}}}, {{name: b, path: {dataset}}}]}}"
    )
    config = make_config(eval_config=path, tool_key="usual", apply_chat_template_kwargs='{"a": 1}')
    first, second = (each.args for each in eval_sets(config))
    assert (first.apply_chat_template, second.apply_chat_template) == (True, False)
    assert (first.tool_key, second.tool_key) == ("abilities", "usual")
    assert json.loads(first.apply_chat_template_kwargs or "") == {"thinking": False}
    assert second.apply_chat_template_kwargs == '{"a": 1}'


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("{datasets: [{name: a, path: b, temprature: 1}]}", "temperature, tool_key, top_k"),
        ("{datasets: [], defaults: {name: a}}", "metadata_overrides, min_new_tokens"),
        ("{datasets: [], default: {}}", "known are datasets, defaults"),
    ],
)
def test_an_unknown_key_is_told_with_the_known_ones(
    make_config: MakeConfig, tmp_path: Path, text: str, known: str
) -> None:
    path = tmp_path / "eval.yaml"
    path.write_text(f"eval: {text}")
    with pytest.raises(ConfigError, match=known):
        eval_sets(make_config(eval_config=path))
