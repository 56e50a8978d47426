"""The process that is measured: one client, which makes samples and tells what that took.

python -m benchmarks.rollout_client.measured CLIENT URL SAMPLES IN_FLIGHT FOLDER
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from espalier.rollout import RolloutConfig, generate_rollout
from espalier.rollout.data_source import RolloutDataSourceWithBuffer

from .slime_loop import run_slime_loop

TOKENIZER: Final = Path(__file__).resolve().parents[2] / "simulator/tokenizer.json"

GROUP_SIZE: Final = 16
"""Samples a prompt. With fewer, the filter would drop groups of equal random rewards; for one of them another
batch is submitted, and what is measured would be how fast the rest of that is aborted."""

PROMPTS: Final = 256
"""Prompts in the dataset; it begins again with the first."""

WARM_UP_GROUPS: Final = 8
"""A first, small rollout: what is loaded and compiled on first use is not measured."""


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """What a number of samples took, in one process."""

    samples: int
    tokens: int
    wall_s: float
    cpu_s: float
    peak_memory_mib: float


Run = Callable[[int], tuple[int, int]]
"""Makes so many groups; returns how many samples and response tokens came of it."""


def espalier_client(url: str, in_flight: int, folder: Path) -> Run:
    """Return a run of `generate_rollout`, as `espalier rollout` does a step, all but its files."""

    def run(groups: int) -> tuple[int, int]:
        config = RolloutConfig(
            router_url=url,
            prompt_data=_dataset(folder),
            hf_checkpoint=TOKENIZER,
            rollout_batch_size=groups,
            n_samples_per_prompt=GROUP_SIZE,
            rm_type="random",
            dynamic_sampling_filter_path="check_reward_nonzero_std",
            sglang_server_concurrency=in_flight,
        )
        output = generate_rollout(config, 0, RolloutDataSourceWithBuffer(config))
        samples = [sample for group in output.samples for sample in group]
        assert output.metrics is not None
        dropped = int(output.metrics["rollout/groups_dropped"] or 0)
        for sample in samples:
            sample.validate()
        return len(samples) + dropped * GROUP_SIZE, sum(sample.response_length for sample in samples)

    return run


def slime_client(url: str, in_flight: int, folder: Path) -> Run:
    """Return a run of the stand-in for slime's loop."""

    def run(groups: int) -> tuple[int, int]:
        prompts = [json.loads(line)["prompt"] for line in _dataset(folder).read_text().splitlines()]
        samples = run_slime_loop(
            url,
            prompts=prompts,
            tokenizer=TOKENIZER,
            groups=groups,
            group_size=GROUP_SIZE,
            in_flight=in_flight,
        )
        return len(samples), sum(sample.response_length for sample in samples)

    return run


CLIENTS: Final = {"espalier": espalier_client, "slime": slime_client}


def measure(run: Run, samples: int) -> Measurement:
    """Make `samples` samples, after a few to warm up."""
    run(WARM_UP_GROUPS)
    began_s, cpu_began_s = time.perf_counter(), time.process_time()
    made, tokens = run(samples // GROUP_SIZE)
    return Measurement(
        samples=made,
        tokens=tokens,
        wall_s=time.perf_counter() - began_s,
        cpu_s=time.process_time() - cpu_began_s,
        peak_memory_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )


def _dataset(folder: Path) -> Path:
    path = folder / "prompts.jsonl"
    if not path.exists():
        lines = [
            json.dumps({"prompt": f"Problem {number}: what is {number} + {number % 97}?", "label": "0"})
            for number in range(PROMPTS)
        ]
        path.write_text("\n".join(lines) + "\n")
    return path


if __name__ == "__main__":
    client, url, samples, in_flight, folder = sys.argv[1:]
    measured = measure(CLIENTS[client](url, int(in_flight), Path(folder)), int(samples))
    print(f"RESULT {msgspec.json.encode(measured).decode()}", flush=True)
