import array
import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from espalier.errors import ConfigError, DataError, PluginError
from espalier.rollout import RolloutConfig, RolloutDataSource, RolloutFnTrainOutput, Sample, generate_rollout
from espalier.rollout.command import EXIT_FAILED, EXIT_INTERRUPTED, run
from tests.rollout.fake_router import FakeRouter, Scripted

HERE = __name__
MakeConfig = Callable[..., RolloutConfig]


def console_of(**options: Any) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=100, **options), out


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_saves_every_sample_and_metric_and_says_where(make_config: MakeConfig) -> None:
    config = make_config(num_rollout=2, dynamic_sampling_filter_path="check_reward_nonzero_std")
    console, out = console_of()
    assert run(config, console=console) == 0
    samples = lines_of(config.output_dir / "samples.jsonl")
    metrics = lines_of(config.output_dir / "metrics.jsonl")
    assert [line["rollout_id"] for line in samples] == [0] * 12 + [1] * 12
    assert [line["rollout_id"] for line in metrics] == [0, 1]
    for line in samples:
        assert len(line["loss_mask"]) == len(line["rollout_log_probs"]) == line["response_length"]
        assert len(line["tokens"]) > line["response_length"] > 0
        assert line["status"] == "completed"
        assert line["reward"] in (0.0, 1.0)
        assert line["weight_spans"] == [{"version": "7", "start": 0, "end": line["response_length"]}]
        assert line["metadata"]["id"] in range(12)
    rewards = [line["reward"] for line in samples[:12]]
    assert metrics[0]["rollout/reward/mean"] == pytest.approx(sum(rewards) / 12)
    shown = out.getvalue()
    assert "step 2 of 2" in shown
    for row in ("groups kept", "groups dropped", "mean reward", "truncated", "tree hit rate"):
        assert row in shown
    assert str(config.output_dir / "samples.jsonl") in shown
    assert str(config.output_dir / "metrics.jsonl") in shown


def test_a_terminal_sees_a_bar_and_a_file_sees_lines(make_config: MakeConfig) -> None:
    console, out = console_of(force_terminal=True)
    run(make_config(), console=console)
    assert "\x1b[" in out.getvalue()
    assert "groups kept, " in out.getvalue()
    console, out = console_of()
    run(make_config(overwrite=True), console=console)
    assert "\x1b[" not in out.getvalue()
    assert "step 1 of 1: 3/3 groups kept, 3 done, 0 dropped" in out.getvalue()


def test_results_are_not_overwritten_unasked(make_config: MakeConfig) -> None:
    config = make_config()
    assert run(config, console=console_of()[0]) == 0
    before = (config.output_dir / "samples.jsonl").read_bytes()
    with pytest.raises(ConfigError, match=r"samples\.jsonl is there already; --overwrite replaces it"):
        run(config, console=console_of()[0])
    assert (config.output_dir / "samples.jsonl").read_bytes() == before
    assert run(make_config(overwrite=True), console=console_of()[0]) == 0


def test_an_output_folder_that_cannot_be_written_is_told_before_any_work(
    fake: FakeRouter, make_config: MakeConfig, dataset: Path
) -> None:
    for folder in (dataset, dataset / "below", Path("/proc/espalier")):
        with pytest.raises(ConfigError, match=f"--output-dir {folder}: "):
            run(make_config(output_dir=folder), console=console_of()[0])
    assert fake.requests == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rm_type": None},
            "no reward is chosen: give --rm-type, one of code, dapo, deepscaler, digit_share, f1, gpqa,",
        ),
        ({"rm_type": "maths"}, "unknown reward 'maths': known are code, dapo, deepscaler, digit_share,"),
        (
            {"dynamic_sampling_filter_path": "std"},
            "known are check_no_aborted, check_no_truncated, check_reward_nonzero_std",
        ),
        ({"rollout_function_path": "json:dumps"}, "expected"),
        ({"custom_generate_function_path": "no_such_module:f"}, "cannot be imported"),
        ({"hf_checkpoint": Path("/no/such")}, "--hf-checkpoint /no/such"),
        ({"prompt_data": Path("/no/such.jsonl")}, "/no/such.jsonl: No such file"),
    ],
)
def test_what_is_wrong_is_told_before_any_work(
    fake: FakeRouter, make_config: MakeConfig, changes: dict[str, Any], message: str
) -> None:
    config = make_config(**changes)
    with pytest.raises(ConfigError) as caught:
        run(config, console=console_of()[0])
    assert message in str(caught.value)
    assert fake.requests == []
    assert not config.output_dir.exists()


def test_a_reward_that_the_dataset_names_is_looked_up_before_any_work(
    make_config: MakeConfig, dataset: Path
) -> None:
    dataset.write_text('{"prompt": "a", "label": "4", "metadata": {"rm_type": "maths"}}\n')
    with pytest.raises(PluginError, match="unknown reward 'maths'"):
        run(make_config(rm_type=None), console=console_of()[0])


def test_a_router_that_cannot_serve_is_told_before_any_work(
    fake: FakeRouter, make_config: MakeConfig
) -> None:
    fake.workers = 0
    with pytest.raises(ConfigError, match="no worker that takes calls"):
        run(make_config(), console=console_of()[0])
    fake.workers = 2
    fake.has_tree = False
    with pytest.raises(ConfigError, match="keeps no radix tree"):
        run(make_config(), console=console_of()[0])
    with pytest.raises(
        ConfigError, match=r"--router-url http://127\.0\.0\.1:9: .*nothing answers there: Connection refused"
    ):
        run(make_config(router_url="http://127.0.0.1:9"), console=console_of()[0])


def test_a_step_that_fails_is_saved_as_far_as_it_got(fake: FakeRouter, make_config: MakeConfig) -> None:
    answered: list[str] = []

    def generation(payload: dict[str, Any]) -> Any:
        answered.append(payload["rid"])
        if len(answered) == 8:
            fake.scripted["/generate"] = [Scripted(400, {"error": {"message": "the end"}})] * 400
        return default(payload)

    default, fake.generation = fake.generation, generation
    console, out = console_of()
    config = make_config(num_rollout=2, sglang_server_concurrency=1, max_dropped_groups=5)
    assert run(config, console=console) == EXIT_FAILED
    assert len(lines_of(config.output_dir / "samples.jsonl")) == 8
    assert lines_of(config.output_dir / "metrics.jsonl")[0]["rollout/groups_kept"] == 2
    shown = " ".join(out.getvalue().split())
    assert "step 1 of 2 ended early; 2 of its groups are saved" in shown
    assert "answered 400: the end" in shown


def halved(
    args: RolloutConfig, rollout_id: int, data_source: RolloutDataSource, evaluation: bool = False
) -> list[list[Sample]]:
    return generate_rollout(args, rollout_id, data_source).samples[:1]


def nothing(args: RolloutConfig, rollout_id: int, data_source: object, evaluation: bool = False) -> None:
    return None


def test_a_rollout_function_may_return_bare_groups(make_config: MakeConfig) -> None:
    config = make_config(rollout_function_path=f"{HERE}:halved")
    assert run(config, console=console_of()[0]) == 0
    assert len(lines_of(config.output_dir / "samples.jsonl")) == 4


def test_a_rollout_function_that_returns_nothing_is_at_fault(make_config: MakeConfig) -> None:
    with pytest.raises(PluginError, match=RolloutFnTrainOutput.__name__):
        run(make_config(rollout_function_path=f"{HERE}:nothing"), console=console_of()[0])


INTERRUPTED = """
import sys
from pathlib import Path
from espalier.rollout import RolloutConfig
from espalier.rollout.command import run

url, data, output = sys.argv[1:]
sys.exit(run(RolloutConfig(
    router_url=url, prompt_data=Path(data), output_dir=Path(output), rm_type="random",
    rollout_batch_size=3, n_samples_per_prompt=2, rollout_deterministic=True,
)))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_and_its_kin_save_what_there_is_and_abort_the_rest(
    fake: FakeRouter, router_url: str, dataset: Path, tmp_path: Path, number: signal.Signals
) -> None:
    fake.holds = lambda payload: "question 2 ?" in payload["text"]
    output = tmp_path / "output"
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, router_url, str(dataset), str(output)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        deadline = time.monotonic() + 30
        shown = ""
        while "2/3 groups kept" not in shown:
            assert time.monotonic() < deadline
            shown += process.stdout.readline()
        process.send_signal(number)
        rest, _ = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == EXIT_INTERRUPTED
    assert "step 1 of 1 ended early; 2 of its groups are saved" in rest
    assert len(lines_of(output / "samples.jsonl")) == 4
    held = {request["rid"] for request in fake.requests if fake.holds(request)}
    assert held <= set(fake.aborted)


def test_signals_are_handled_as_before_once_the_run_is_over(make_config: MakeConfig) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    run(make_config(), console=console_of()[0])
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before


class Opaque:
    """Something that no file can hold."""


async def careless_reward(args: RolloutConfig, sample: Sample) -> dict[str, Any]:
    value: Any = {0: Opaque(), 1: array.array("d", [0.5])}.get(sample.group_index or 0, 1.0)
    sample.metadata["judge"] = {"score": 1.0, "raw": value}
    return {"score": 1.0}


def test_a_value_that_cannot_be_saved_costs_its_group_and_is_named(make_config: MakeConfig) -> None:
    config = make_config(custom_rm_path=f"{HERE}:careless_reward", reward_key="score")
    console, out = console_of()
    assert run(config, console=console) == 0
    lines = lines_of(config.output_dir / "samples.jsonl")
    assert [line["group_index"] for line in lines] == [1] * 4 + [2] * 4
    assert lines[0]["metadata"]["judge"]["raw"] == [0.5]
    [metrics] = lines_of(config.output_dir / "metrics.jsonl")
    assert metrics["rollout/groups_kept"] == 2
    assert metrics["rollout/failed_group/unsavable"] == 1
    shown = " ".join(out.getvalue().split())
    assert "sample 0 cannot be saved: metadata: judge: 'raw' holds a Opaque" in shown


def walking_out(
    args: RolloutConfig, rollout_id: int, data_source: RolloutDataSource, evaluation: bool = False
) -> None:
    generate_rollout(args, rollout_id, data_source)
    raise asyncio.CancelledError


def test_whatever_ends_a_step_its_groups_are_saved(make_config: MakeConfig) -> None:
    config = make_config(rollout_function_path=f"{HERE}:walking_out")
    with pytest.raises(asyncio.CancelledError):
        run(config, console=console_of()[0])
    assert len(lines_of(config.output_dir / "samples.jsonl")) == 12


def test_a_run_that_yields_nothing_leaves_the_earlier_one_as_it_was(
    fake: FakeRouter, make_config: MakeConfig
) -> None:
    config = make_config()
    assert run(config, console=console_of()[0]) == 0
    before = {path.name: path.read_bytes() for path in config.output_dir.iterdir()}
    fake.scripted["/generate"] = [Scripted(400, "no")] * 100
    console, out = console_of()
    assert run(make_config(overwrite=True, max_dropped_groups=3), console=console) == EXIT_FAILED
    assert {path.name: path.read_bytes() for path in config.output_dir.iterdir()} == before
    assert "nothing was saved" in out.getvalue()


def test_dead_workers_end_the_run_with_what_it_has(fake: FakeRouter, make_config: MakeConfig) -> None:
    answered: list[str] = []

    def generation(payload: dict[str, Any]) -> Any:
        answered.append(payload["rid"])
        if len(answered) == 4:
            fake.workers = 0
        return default(payload)

    default, fake.generation = fake.generation, generation
    console, out = console_of()
    config = make_config(sglang_server_concurrency=1, router_patience_s=0.5)
    assert run(config, console=console) == EXIT_FAILED
    assert len(lines_of(config.output_dir / "samples.jsonl")) == 4
    shown = " ".join(out.getvalue().split())
    assert "the router has no worker to send a call to: There are no workers; waiting, 0.5 s" in shown
    assert "step 1 of 1 ended early; 1 of its groups are saved" in shown
    assert "--router-patience-s" in shown


def test_dropped_groups_are_told_off_a_terminal_with_the_first_problem(
    fake: FakeRouter, make_config: MakeConfig
) -> None:
    fake.scripted["/generate"] = [Scripted(400, "bad temperature")] * 100
    console, out = console_of()
    run(make_config(n_samples_per_prompt=1, max_dropped_groups=9), console=console)
    shown = out.getvalue()
    told = [line for line in shown.splitlines() if "a group is dropped (refused): " in line]
    assert len(told) == 1
    assert told[0].endswith("answered 400: bad temperature")
    for count in (1, 2, 4, 8):
        assert f"0/3 groups kept, {count} done, {count} dropped" in shown


@pytest.mark.parametrize("label", ["null", "true", '""', None])
def test_a_label_that_the_reward_cannot_use_is_told_before_any_work(
    fake: FakeRouter, make_config: MakeConfig, dataset: Path, label: str | None
) -> None:
    last = '{"prompt": "b"}' if label is None else f'{{"prompt": "b", "label": {label}}}'
    dataset.write_text(f'{{"prompt": "a", "label": 0}}\n\n{last}\n')
    with pytest.raises(
        DataError, match=r"problems\.jsonl, line 3: .*'math' needs a number or a text as label"
    ):
        run(make_config(), console=console_of()[0])
    assert fake.requests == []


def test_labels_are_left_alone_where_nothing_compares_with_them(
    make_config: MakeConfig, dataset: Path
) -> None:
    dataset.write_text('{"prompt": "a", "metadata": {"rm_type": "random"}}\n')
    assert run(make_config(), console=console_of()[0]) == 0


def test_importing_the_client_loads_no_server_and_no_torch() -> None:
    code = (
        "import sys, espalier.rollout.command as _; "
        "print([m for m in ('fastapi', 'starlette', 'uvicorn', 'torch', 'tokenizers') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
