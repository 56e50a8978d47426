import json
import struct
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from espalier.errors import ConfigError
from espalier.rollout import RolloutConfig
from espalier.rollout.command import run
from espalier.rollout.wandb_run import WandbWriter

Record: Any = import_module("wandb.proto.wandb_internal_pb2").Record
HEADER_BYTES, BLOCK_BYTES = 7, 32 << 10


def records_of(path: Path) -> Iterator[Any]:
    """Yield what is in a run's file: records in LevelDB's log format, after a header of the same size."""
    content, at, data = path.read_bytes(), HEADER_BYTES, b""
    while at + HEADER_BYTES <= len(content):
        if BLOCK_BYTES - at % BLOCK_BYTES < HEADER_BYTES:
            at += BLOCK_BYTES - at % BLOCK_BYTES
            continue
        _, size, kind = struct.unpack_from("<IHB", content, at)
        at += HEADER_BYTES
        data += content[at : at + size]
        at += size
        if kind in {1, 4}:  # whole, or the last part
            yield Record.FromString(data)
            data = b""


def test_what_is_in_the_metrics_file_is_in_the_offline_run(make_config: Callable[..., RolloutConfig]) -> None:
    config = make_config(num_rollout=2, use_wandb=True, wandb_project="arithmetic", wandb_group="first")
    assert run(config) == 0
    [path] = (config.output_dir / "wandb").glob("offline-run-*/run-*.wandb")
    records = list(records_of(path))
    [begun] = [each.run for each in records if each.HasField("run")]
    assert (begun.project, begun.run_group) == ("arithmetic", "first")
    found: dict[tuple[int, str], float] = {}
    for record in records:
        told = {
            item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
        }
        found |= {(told["_step"], name): value for name, value in told.items() if not name.startswith("_")}
    lines = [json.loads(line) for line in (config.output_dir / "metrics.jsonl").read_text().splitlines()]
    assert found == {
        (line["rollout_id"], name): value
        for line in lines
        for name, value in line.items()
        if name != "rollout_id" and value is not None
    }
    assert {step for step, _ in found} == {0, 1}


def test_nothing_is_made_unasked(make_config: Callable[..., RolloutConfig]) -> None:
    config = make_config()
    assert run(config) == 0
    assert not (config.output_dir / "wandb").exists()


def test_unknown_mode_is_told_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--wandb-mode sideways: expected offline or online"):
        WandbWriter(tmp_path, project="p", mode="sideways")
