"""The client: wrk on one thread, keeping a fixed number of calls in flight."""

import subprocess
from pathlib import Path
from typing import Final

import msgspec

from .scenarios import Scenario

TIMEOUT_S: Final = 60
"""wrk counts a longer reply as failed; with 1,024 calls in flight on one core, a long one takes seconds."""

PROMPTS: Final = 8192
"""Prompts of one measurement; more calls than eight times as many begin again with the first."""

SIBLINGS: Final = 8
"""Calls a prompt, as a group of GRPO has."""

_SCRIPT = r"""
local requests, calls = {}, 0
function init(args)
  wrk.method = "POST"
  wrk.headers["content-type"] = "application/json"
  for at = 1, PROMPTS do
    local problem = tonumber(args[1]) * PROMPTS + at
    requests[at] = wrk.format(nil, nil, nil, string.format(
      '{"text":"<|im_start|>user\\nProblem %d: what is %d + %d?<|im_end|>\\n<|im_start|>assistant\\n",'
      .. '"sampling_params":{"temperature":1.0,"max_new_tokens":TOKENS},'
      .. '"return_logprob":true,"stream":STREAM}', problem, problem, problem % 97))
  end
end
function request()
  local at = math.floor(calls / SIBLINGS) % PROMPTS + 1
  calls = calls + 1
  return requests[at]
end
function done(summary, latency)
  local failed = summary.errors
  io.write(string.format(
    'RESULT {"calls":%d,"duration_us":%d,"bytes":%d,"failed":%d,"p50_us":%d,"p99_us":%d}\n',
    summary.requests, summary.duration, summary.bytes,
    failed.connect + failed.read + failed.write + failed.status + failed.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""


class Load(msgspec.Struct, frozen=True):
    """What wrk counted."""

    calls: int
    duration_us: int
    bytes: int
    failed: int
    p50_us: int
    p99_us: int


def request_body(scenario: Scenario) -> bytes:
    """Return a request as wrk sends it, for a try by hand."""
    return msgspec.json.encode(
        {
            "text": "<|im_start|>user\nWhat is 17 + 25?<|im_end|>\n<|im_start|>assistant\n",
            "sampling_params": {"temperature": 1.0, "max_new_tokens": scenario.tokens},
            "return_logprob": True,
            "stream": scenario.is_streamed,
        }
    )


def run_load(
    scenario: Scenario, *, port: int, seconds: int, core: int, folder: Path, first_prompt: int
) -> Load:
    """Send calls for `seconds`. Runs with different `first_prompt` have no prompt in common."""
    script = folder / "load.lua"
    script.write_text(
        _SCRIPT.replace("PROMPTS", str(PROMPTS))
        .replace("SIBLINGS", str(SIBLINGS))
        .replace("TOKENS", str(scenario.tokens))
        .replace("STREAM", "true" if scenario.is_streamed else "false")
    )
    command = ["taskset", "-c", str(core), "wrk", "-t1", f"-c{scenario.connections}", f"-d{seconds}s"]
    command += ["--timeout", f"{TIMEOUT_S}s", "-s", str(script), f"http://127.0.0.1:{port}/generate"]
    told = subprocess.run(
        [*command, "--", str(first_prompt)], capture_output=True, text=True, check=True
    ).stdout
    return msgspec.json.decode(told.partition("RESULT ")[2], type=Load)
