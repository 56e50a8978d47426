"""What a person sees of `espalier rollout` when something is wrong, and what is on disk then."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from espalier.cli import EXIT_USAGE, main
from espalier.rollout import RolloutConfig, Sample
from espalier.rollout.command import EXIT_FAILED
from tests.router.processes import router_process
from tests.simulator.workers import INSTANT, running_worker
from tests.test_rollouts import PROBLEMS, fleet

TOKENIZER = Path(__file__).parent.parent / "simulator" / "tokenizer.json"
DEADLINE_S = 60.0
GROUP_SIZE = 2


def raising_or_nan(args: RolloutConfig, sample: Sample) -> float:
    """Raise for every third group, find no number for another third, and grade the rest."""
    assert sample.group_index is not None
    if sample.group_index % 3 == 0:
        raise KeyError("gold")
    return math.nan if sample.group_index % 3 == 1 else 1.0


def silent(args: RolloutConfig, samples: list[Sample]) -> None:
    """Forget to return the verdict."""


def flags(url: str, folder: Path, *more: str, prompts: Path = PROBLEMS) -> list[str]:
    common = ["--router-url", url, "--prompt-data", str(prompts), "--output-dir", str(folder)]
    return ["rollout", *common, "--n-samples-per-prompt", str(GROUP_SIZE), *more]


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_reward_that_raises_or_is_nan_costs_its_groups_and_is_told_with_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reward = ["--custom-rm-path", f"{__name__}:raising_or_nan", "--rollout-batch-size", "3"]
    with fleet(**INSTANT) as (url, _):
        assert main(flags(url, tmp_path, *reward)) == 0
    kept = {line["group_index"] for line in lines_of(tmp_path / "samples.jsonl")}
    assert len(kept) == 3
    assert {index % 3 for index in kept} == {2}
    (metrics,) = lines_of(tmp_path / "metrics.jsonl")
    assert metrics["rollout/failed_group/raised_KeyError"] >= 1
    assert metrics["rollout/failed_group/reward_failed"] >= 1
    shown = capsys.readouterr().out
    assert "(raised_KeyError): KeyError: 'gold' (test_rollout_trouble.py, line " in shown
    assert "in raising_or_nan)" in shown
    assert f"the reward '{__name__}:raising_or_nan' returned nan, which is no finite number" in shown


@pytest.mark.parametrize(
    ("line", "more", "message"),
    [
        (
            {"question": "a", "label": "4"},
            ["--rm-type", "math"],
            "line 1: no key 'prompt', only 'question', 'label'",
        ),
        (
            {"prompt": "a", "label": ["4"]},
            ["--rm-type", "math"],
            "line 1: the reward 'math' needs a number or a text as label, not ['4']",
        ),
        (
            {"prompt": "a", "label": "4"},
            ["--rm-type", "random", "--dynamic-sampling-filter-path", f"{__name__}:silent"],
            "the dynamic filter 'silent' must return a DynamicFilterOutput or a bool, not NoneType",
        ),
    ],
)
def test_what_is_the_users_to_mend_ends_the_command_with_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: dict[str, Any], more: list[str], message: str
) -> None:
    data = tmp_path / "problems.jsonl"
    data.write_text(json.dumps(line) + "\n")
    with fleet(**INSTANT) as (url, _):
        assert main(flags(url, tmp_path / "out", *more, prompts=data)) == EXIT_USAGE
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("espalier rollout: ")
    assert message in told
    assert not (tmp_path / "out" / "samples.jsonl").exists()


def test_a_router_that_is_killed_ends_the_command_with_what_was_kept_on_disk(tmp_path: Path) -> None:
    with (
        running_worker(**INSTANT | {"decode_step_s": 0.002}) as worker,
        router_process("--worker-urls", str(worker.base_url)) as (router, url),
    ):
        own = ["--rm-type", "random", "--rollout-batch-size", "80", "--sglang-server-concurrency", "8"]
        own += ["--router-patience-s", "0.5", "--hf-checkpoint", str(TOKENIZER)]
        command = flags(url, tmp_path, *own)
        with subprocess.Popen(
            [sys.executable, "-u", "-m", "espalier", *command], stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                assert process.stdout is not None
                shown, deadline_s = "", time.monotonic() + DEADLINE_S
                while "/80 groups kept" not in shown:
                    assert time.monotonic() < deadline_s
                    shown += process.stdout.readline()
                router.kill()
                shown += process.communicate(timeout=DEADLINE_S)[0]
            finally:
                process.kill()
    assert process.returncode == EXIT_FAILED
    saved = len(lines_of(tmp_path / "samples.jsonl"))
    assert saved >= 20 * GROUP_SIZE
    assert f"step 1 of 1 ended early; {saved // GROUP_SIZE} of its groups are saved" in shown
    assert "the router is unreachable" in shown
    assert "--router-patience-s sets how long is waited" in shown
