"""How many calls a second one core of the router carries.

    python benchmarks/forwarding.py            # needs wrk (Debian: apt-get install wrk) and two cores

The router has one core; wrk and two static workers share the other. Prints, per round, calls/s of the router
without middleware at 1 KB replies, and of the router recording replies of 1,024 tokens with their log-probs;
beside it the CPU time the router spent on a call, which a busy machine disturbs less. Then the medians. Every
call of the second kind is a text prompt, eight calls a prompt, as in GRPO.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError
from urllib.request import urlopen

HERE = Path(__file__).parent
ROUTER_CORE, LOAD_CORE = "0", "1"

LOAD_SCRIPT = r"""
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
local calls = 0
request = function()
  local problem = math.floor(calls / 8)
  calls = calls + 1
  local body = string.format(
    '{"text":"<|im_start|>user\\nProblem %d: what is %d + %d?<|im_end|>\\n<|im_start|>assistant\\n",'
    .. '"sampling_params":{"temperature":1.0,"max_new_tokens":1024},"return_logprob":true}',
    problem, problem, problem % 97)
  return wrk.format(nil, nil, nil, body)
end
"""


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=5, help="length of one measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connections", type=int, default=64)
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        print("wrk is missing: apt-get install wrk", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        script = Path(folder) / "load.lua"
        script.write_text(LOAD_SCRIPT)
        plain = stack.enter_context(router(9300, ["--bytes", "1024"], ["--middleware", "none"]))
        recording = stack.enter_context(router(9400, ["--tokens", "1024"], []))
        rounds: dict[str, list[Measured]] = {"forwarding 1 KB": [], "recording 1,024 tokens": []}
        for number in range(1, options.rounds + 1):
            for name, target in zip(rounds, (plain, recording), strict=True):
                measured = measure(target, script, options.connections, options.seconds)
                rounds[name].append(measured)
                print(f"round {number}  {name:24} {measured}", flush=True)
        for name, values in rounds.items():
            medians = Measured(*(statistics.median(column) for column in zip(*values, strict=True)))
            print(f"median   {name:24} {medians}")
        with urlopen(f"{recording.url}/radix_tree/stats", timeout=10) as answer:  # a local address
            recorded = json.load(answer)
        print(
            f"recorded {recorded['calls_recorded_total']:,} calls, {recorded['cached_tokens']:,} tokens kept"
        )
        assert recorded["calls_recorded_total"] > 0
    return 0


class Router(NamedTuple):
    """A running router."""

    url: str
    pid: int

    def cpu_s(self) -> float:
        """Return the CPU time that it has used, in user and system mode."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Measured(NamedTuple):
    """What one measurement gave."""

    calls_per_s: float
    cpu_us_per_call: float

    def __str__(self) -> str:
        """Write it as a line of the report."""
        return f"{self.calls_per_s:9,.0f} calls/s {self.cpu_us_per_call:7,.0f} us CPU a call"


@contextlib.contextmanager
def router(base_port: int, worker_options: list[str], router_options: list[str]) -> Iterator[Router]:
    """Run a router on one core in front of two static workers on the other."""
    worker_ports = [base_port + 1, base_port + 2]
    urls = [f"http://127.0.0.1:{port}" for port in worker_ports]
    commands = [
        pinned(LOAD_CORE, str(HERE / "static_worker.py"), "--port", str(port), *worker_options)
        for port in worker_ports
    ]
    commands.append(
        pinned(
            ROUTER_CORE,
            *("-m", "espalier", "router", "--host", "127.0.0.1", "--port", str(base_port)),
            *("--log-level", "warning", "--worker-urls", *urls, *router_options),
        )
    )
    processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands]
    try:
        for port in [*worker_ports, base_port]:
            wait_for(f"http://127.0.0.1:{port}/health")
        yield Router(f"http://127.0.0.1:{base_port}", processes[-1].pid)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(20)


def pinned(core: str, *arguments: str) -> list[str]:
    """Return the command that runs Python with `arguments` on one core."""
    return ["taskset", "-c", core, sys.executable, *arguments]


def wait_for(url: str) -> None:
    """Return once `url` answers."""
    deadline_s = time.monotonic() + 30
    while time.monotonic() < deadline_s:
        try:
            with urlopen(url, timeout=5):  # a local address
                return
        except (URLError, ConnectionError):
            time.sleep(0.05)
    raise TimeoutError(url)


def measure(target: Router, script: Path, connections: int, seconds: int) -> Measured:
    """Return the calls a second that wrk got answered with a 2xx status, and what they cost the router."""
    before_s = target.cpu_s()
    command = ["taskset", "-c", LOAD_CORE, "wrk", "-t1", f"-c{connections}", f"-d{seconds}s"]
    told = subprocess.run(
        [*command, "-s", str(script), f"{target.url}/generate"], capture_output=True, text=True, check=True
    ).stdout
    if "Non-2xx" in told or "PANIC" in told or "Socket errors" in told:
        raise RuntimeError(f"calls failed:\n{told}")
    rate = re.search(r"Requests/sec:\s+([\d.]+)", told)
    calls = re.search(r"(\d+) requests in", told)
    assert rate is not None
    assert calls is not None
    return Measured(float(rate.group(1)), (target.cpu_s() - before_s) / int(calls.group(1)) * 1e6)


if __name__ == "__main__":
    sys.exit(main())
