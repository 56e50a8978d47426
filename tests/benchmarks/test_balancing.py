"""The policy simulation: what its figures rest on."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def figures() -> dict[str, list[str]]:
    """Return the rows of a small run, by policy."""
    command = [sys.executable, "-m", "benchmarks.balancing", "--seeds", "1", "--groups", "16"]
    ended = subprocess.run(
        [*command, "--scenario", "multi-turn"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    rows = [line.strip("| ").split(" | ") for line in ended.stdout.splitlines() if line.startswith("| ")]
    return {name: values for name, *values in rows}


def test_policy_figures_are_the_same_on_every_run_and_favour_affinity() -> None:
    first = figures()
    assert figures() == first
    hits = {name: float(values[0].rstrip("%")) for name, values in first.items() if name != "policy"}
    assert hits["prefix_affinity"] > hits["least_inflight"] + 20
    assert hits["consistent_hashing"] > hits["least_inflight"] + 20
