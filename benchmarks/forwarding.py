"""How many calls a second one core of the router carries.

    python benchmarks/forwarding.py

Needs two cores, wrk and nginx (Debian: apt-get install wrk nginx-light). The router has one core; wrk and
nginx, which plays the worker with files, share the other. Prints, per round, calls/s of the router without
middleware at 1 KB replies, and of the router recording replies of 1,024 tokens with log-probabilities; beside
it the CPU time that a call cost the router, which a busy machine disturbs less. Then the medians. Every call
of the second kind is a text prompt, eight calls a prompt, as in GRPO. The first line of a round tells how
fast the router's core is just then: the time to decode one such reply.
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
from urllib.request import ProxyHandler, build_opener

from replies import long_reply, small_reply

HERE = Path(__file__).parent
TOKENIZER = HERE.parent / "simulator"
ROUTER_CORE, LOAD_CORE = "0", "1"
DIRECT = build_opener(ProxyHandler({}))
"""Everything here is on this machine: no proxy."""

SEARCH_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin"
"""Debian keeps nginx where only root looks."""

NGINX = """
worker_processes 1;
daemon off;
pid FOLDER/nginx.pid;
error_log FOLDER/error.log;
events { worker_connections 4096; }
http {
  access_log off;
  default_type application/json;
  root FOLDER;
  client_body_temp_path FOLDER/bodies;
  client_body_buffer_size 64k;
  keepalive_requests 1000000000;
  open_file_cache max=10;
SERVERS
}
"""

SERVER = """
  server {
    listen 127.0.0.1:PORT backlog=4096;
    location = /generate { error_page 405 =200 /PORT.json; try_files /PORT.json =404; }
  }
"""
"""nginx answers 405 to a POST for a file; the error page makes that the file itself."""

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
    for program in ("wrk", "nginx", "taskset"):
        if shutil.which(program, path=SEARCH_PATH) is None:
            print(f"{program} is missing: apt-get install wrk nginx-light util-linux", file=sys.stderr)
            return 2
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        folder = Path(temporary)
        folder.chmod(0o755)
        script = folder / "load.lua"
        script.write_text(LOAD_SCRIPT)
        stack.enter_context(workers(folder, {9301: small_reply(1024), 9401: long_reply(1024)}))
        plain = stack.enter_context(router(9300, "--middleware", "none"))
        recording = stack.enter_context(router(9400))
        rounds: dict[str, list[Measured]] = {"forwarding 1 KB": [], "recording 1,024 tokens": []}
        for number in range(1, options.rounds + 1):
            print(f"round {number}  {'(decoding one reply':24} {decoding_us():29,.0f} us)", flush=True)
            for name, target in zip(rounds, (plain, recording), strict=True):
                measured = measure(target, script, options.connections, options.seconds)
                rounds[name].append(measured)
                print(f"round {number}  {name:24} {measured}", flush=True)
        for name, values in rounds.items():
            medians = Measured(*(statistics.median(column) for column in zip(*values, strict=True)))
            print(f"median   {name:24} {medians}")
        with DIRECT.open(f"{recording.url}/radix_tree/stats", timeout=10) as answer:
            recorded = json.load(answer)
        print(
            f"recorded {recorded['calls_recorded_total']:,} calls, {recorded['cached_tokens']:,} tokens kept"
        )
        if not recorded["calls_recorded_total"]:
            raise RuntimeError("nothing was recorded: the figure above is not that of recording")
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


YARDSTICK = """
import sys, timeit
sys.path.insert(0, sys.argv[1])
from espalier.sglang import decode_reply
from replies import long_reply
reply = long_reply(1024)
print(min(timeit.repeat(lambda: decode_reply(reply), number=100, repeat=20)) / 100 * 1e6)
"""


def decoding_us() -> float:
    """Return the time that the router's core takes to decode one reply of 1,024 tokens."""
    command = pinned(ROUTER_CORE, "-c", YARDSTICK, str(HERE))
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@contextlib.contextmanager
def workers(folder: Path, replies: dict[int, bytes]) -> Iterator[None]:
    """Run nginx on the load's core, answering `/generate` on each port with its reply."""
    for port, reply in replies.items():
        (folder / f"{port}.json").write_bytes(reply)
    (folder / "model_info").write_text(json.dumps({"tokenizer_path": str(TOKENIZER)}))
    (folder / "health").write_text("")
    servers = "".join(SERVER.replace("PORT", str(port)) for port in replies)
    config = folder / "nginx.conf"
    config.write_text(NGINX.replace("SERVERS", servers).replace("FOLDER", str(folder)))
    nginx = shutil.which("nginx", path=SEARCH_PATH)
    assert nginx is not None
    with running(["taskset", "-c", LOAD_CORE, nginx, "-c", str(config)]) as process:
        for port in replies:
            wait_for(f"http://127.0.0.1:{port}/health", process)
        yield


@contextlib.contextmanager
def router(port: int, *flags: str) -> Iterator[Router]:
    """Run a router on its core, in front of the worker on the next port."""
    url = f"http://127.0.0.1:{port}"
    arguments = ["--host", "127.0.0.1", "--port", str(port), "--log-level", "warning", *flags]
    arguments += ["--worker-urls", f"http://127.0.0.1:{port + 1}"]
    with running(pinned(ROUTER_CORE, "-m", "espalier", "router", *arguments)) as process:
        wait_for(f"{url}/health", process)
        yield Router(url, process.pid)


@contextlib.contextmanager
def running(command: list[str]) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a process until the block ends."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.terminate()


def pinned(core: str, *arguments: str) -> list[str]:
    """Return the command that runs Python with `arguments` on one core."""
    return ["taskset", "-c", core, sys.executable, *arguments]


def wait_for(url: str, process: "subprocess.Popen[bytes]") -> None:
    """Return once `url` answers, which `process` serves."""
    deadline_s = time.monotonic() + 30
    while time.monotonic() < deadline_s and process.poll() is None:
        try:
            with DIRECT.open(url, timeout=5):
                return
        except (URLError, ConnectionError):
            time.sleep(0.05)
    raise RuntimeError(f"{url} does not answer: is its port taken?")


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
