"""The `code` reward: runs a response's program against tests.

The program is the last fenced block of the response. The label is what it must pass:

- a text: Python that runs behind the program, in the same process (`assert add(1, 2) == 3`);
- a list of `{"input": text, "output": text}`: the program reads the one and must print the other.

What is kept from the program, and what is not, `code_sandbox` tells. A program that shares its process with
its tests can cheat them, if it sets out to; one that is tested by input and output cannot.
"""

import asyncio
import contextlib
import json
import os
import re
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from weakref import WeakKeyDictionary

from ..config import RolloutConfig
from ..problems import RewardFailed
from ..sample import Sample
from .code_sandbox import NOT_ISOLATED
from .hub import checks_labels, keeps_time, rewards

MAX_PROGRAMS: Final = os.cpu_count() or 1
"""Programs at a time: each keeps a core busy, and its time runs whether it gets one or not."""

MAX_OUTPUT_BYTES: Final = 1 << 20
"""Output of a program that is read; a program that says more is wrong."""

MAX_FILE_BYTES: Final = 16 << 20
"""Size of a file that a program may write."""

CLEANUP_TIME_S: Final = 1.0
"""Seconds for the output of a killed program to end; one that left its group can hold it open."""

_SANDBOX: Final = Path(__file__).with_name("code_sandbox.py")
_FENCE: Final = re.compile(r"^```[^\n`]*\n(.*?)^```", re.MULTILINE | re.DOTALL)

_slots: "WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore]" = WeakKeyDictionary()


def label_problem(label: object) -> str | None:
    """Return what keeps `label` from being run, or None."""
    if isinstance(label, str) and label.strip():
        return None
    if isinstance(label, list) and label and all(_is_case(case) for case in label):
        return None
    return (
        "the reward 'code' needs a label that is Python to run behind the program, or a list of objects "
        f"with the texts 'input' and 'output', not {label!r:.100}"
    )


def _is_case(case: object) -> bool:
    return isinstance(case, dict) and all(isinstance(case.get(key), str) for key in ("input", "output"))


@keeps_time
@checks_labels(label_problem)
async def code_reward(args: RolloutConfig, sample: Sample) -> float:
    """Return 1.0 where the response's program passes all tests of the label, else 0.0.

    Its tests have `code_rm_timeout_s` seconds together, and each run `code_rm_memory_mb` of memory.

    Raises: RewardFailed where the label holds no tests, or programs cannot be kept off the network here.
    """
    problem = label_problem(sample.label)
    if problem is not None:
        raise RewardFailed(problem)
    program = last_block(sample.response)
    if program is None:
        return 0.0
    slots = _slots.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(MAX_PROGRAMS))
    async with slots:
        deadline_s = time.monotonic() + args.code_rm_timeout_s
        if isinstance(sample.label, str):
            # Only who runs to the end says the word; exiting early does not pass the tests.
            word = secrets.token_hex(16)
            source = f"{program}\n\n{sample.label}\n\nprint({word!r}, flush=True)\n"
            return float((await _output(args, source, "", deadline_s) or "").rstrip("\n").endswith(word))
        for case in sample.label:
            printed = await _output(args, program, case["input"], deadline_s)
            if printed is None or _lines(printed) != _lines(case["output"]):
                return 0.0
    return 1.0


rewards.register("code")(code_reward)


def last_block(response: str) -> str | None:
    """Return what stands in the last fenced block of `response`, or None."""
    blocks: Sequence[str] = _FENCE.findall(response.rpartition("</think>")[2])
    return blocks[-1] if blocks else None


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


async def _output(args: RolloutConfig, source: str, given: str, deadline_s: float) -> str | None:
    """Return what the program prints; None where it fails, says too much or takes too long."""
    limits = {
        "cpu_s": int(args.code_rm_timeout_s) + 1,
        "memory_bytes": args.code_rm_memory_mb << 20,
        "file_bytes": MAX_FILE_BYTES,
        "needs_isolation": not args.code_rm_allow_network,
    }
    with tempfile.TemporaryDirectory(prefix="espalier-code-", ignore_cleanup_errors=True) as folder:
        program = _written(source, Path(folder))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", str(_SANDBOX), json.dumps(limits), str(program)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            cwd=folder,
            env={"PATH": os.defpath, "HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8"},
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(max(deadline_s - time.monotonic(), 0)):
                printed = await _talk(process, given.encode("utf-8", "replace"))
                status = await process.wait() if printed is not None else None
        except TimeoutError:
            return None
        finally:
            await _end(process)
    if status == NOT_ISOLATED:
        raise RewardFailed(
            "the reward 'code' cannot keep programs off the network here: run it where user namespaces are "
            "allowed, or give --code-rm-allow-network"
        )
    return printed.decode("utf-8", "replace") if printed is not None and status == 0 else None


def _written(source: str, folder: Path) -> Path:
    program = folder / "program.py"
    program.write_text(source, encoding="utf-8", errors="replace")
    return program


async def _talk(process: asyncio.subprocess.Process, given: bytes) -> bytes | None:
    """Feed the program and return all that it prints, or None where that is too much."""
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(OSError):  # it need not read
        process.stdin.write(given)
        process.stdin.close()
    printed = bytearray()
    while chunk := await process.stdout.read(65536):
        printed += chunk
        if len(printed) > MAX_OUTPUT_BYTES:
            return None
    return bytes(printed)


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    await process.wait()
    with contextlib.suppress(TimeoutError):  # what it had said is thrown away, so that the pipe is let go
        async with asyncio.timeout(CLEANUP_TIME_S):
            await process.communicate()
