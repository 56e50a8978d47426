import asyncio
import json
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from espalier.errors import RolloutError
from espalier.rollout import RolloutConfig, Sample
from espalier.rollout.rewards import async_rm, code_sandbox

GENEROUS_S = 60.0

GRADE = """
import asyncio, sys
from pathlib import Path
from espalier.rollout import RolloutConfig, Sample
from espalier.rollout.rewards import async_rm
args = RolloutConfig(prompt_data=Path("unused"), rm_type="code", code_rm_allow_network=sys.argv[1] == "yes")
try:
    print(asyncio.run(async_rm(args, Sample(response="```\\npass\\n```", label="pass"))))
except Exception as error:
    print(error)
"""


def can_isolate(folder: Path) -> bool:
    """Tell whether this machine lets the sandbox leave the network."""
    program = folder / "program.py"
    program.write_text("")
    limits = {"cpu_s": 60, "memory_bytes": 1 << 30, "file_bytes": 1 << 20, "needs_isolation": True}
    command = [sys.executable, "-I", code_sandbox.__file__, json.dumps(limits), str(program)]
    return subprocess.run(command, check=False).returncode == 0


with tempfile.TemporaryDirectory() as scratch:
    IS_ISOLATED = can_isolate(Path(scratch))

REFUSAL = "cannot keep programs off the network here"
"""What the reward says where the system allows no user namespaces, as in most containers."""


def reward(program: str, label: Any, *, timeout_s: float = GENEROUS_S, **changes: Any) -> float:
    settings: dict[str, Any] = {"code_rm_timeout_s": timeout_s, "code_rm_allow_network": not IS_ISOLATED}
    args = RolloutConfig(prompt_data=Path("unused"), rm_type="code", **{**settings, **changes})
    response = f"<think>```python\n1/0\n```</think>So:\n```python\n{program}\n```\n"
    return float(asyncio.run(async_rm(args, Sample(response=response, label=label))))  # type: ignore[arg-type]


ADD = "def add(a, b):\n    return a + b"


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (ADD, 1.0),
        (ADD.replace("+", "-"), 0.0),
        ("def add(a, b:", 0.0),
        ("import sys; sys.exit(0)", 0.0),
        ("import os; os._exit(0)", 0.0),
        (f"{ADD}\nprint('chatty')", 1.0),
    ],
)
def test_a_program_must_pass_the_tests_behind_it(program: str, expected: float) -> None:
    assert reward(program, "assert add(1, 2) == 3") == expected


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("print(int(input()) * 2)", 1.0),
        ("print(int(input()) * 2, end=' \\n\\n')", 1.0),
        ("print(int(input()) + 2)", 0.0),
        ("print(int(input()) * 2); raise SystemExit(1)", 0.0),
        ("print(2)", 0.0),
    ],
)
def test_a_program_must_print_what_every_case_says(program: str, expected: float) -> None:
    cases = [{"input": "2\n", "output": "4\n"}, {"input": "5", "output": "10"}]
    assert reward(program, cases) == expected


def test_a_response_without_a_program_is_wrong() -> None:
    args = RolloutConfig(prompt_data=Path("unused"), rm_type="code")
    assert asyncio.run(async_rm(args, Sample(response="x = 1", label="pass"))) == 0.0


def graded_apart(program: str, label: Any, **changes: Any) -> float | None:
    """Return the reward of a program that may only run apart; None where it must be, and is, refused."""
    if IS_ISOLATED:
        return reward(program, label, code_rm_allow_network=False, **changes)
    with pytest.raises(RolloutError, match=REFUSAL):
        reward(program, label, code_rm_allow_network=False, **changes)
    return None


def test_a_program_has_no_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        call = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 5)"
        assert graded_apart(call, "pass") in (0.0, None)
        refused = f"try:\n    {call.splitlines()[1]}\nexcept OSError as error:\n    print(error.errno)"
        unreachable = [{"input": "", "output": "101"}]
        assert graded_apart(f"import socket\n{refused}", unreachable) == (1.0 if IS_ISOLATED else None)


@pytest.mark.parametrize("program", ["while True: pass", "import time; time.sleep(1000)"])
def test_a_program_that_does_not_end_is_killed(program: str) -> None:
    began = time.monotonic()
    assert reward(program, "pass", timeout_s=1.0) == 0.0
    assert time.monotonic() - began < 30


def test_what_a_program_has_started_is_killed_with_it() -> None:
    began = time.monotonic()
    leaving = "import os, time\nif os.fork() == 0: os.setsid()\ntime.sleep(1000)"
    assert graded_apart(leaving, "pass", timeout_s=1.0) in (0.0, None)
    assert time.monotonic() - began < 30


def test_a_program_cannot_take_more_memory_than_it_may() -> None:
    hungry = "x = bytearray(600 << 20)"
    assert reward(hungry, "pass") == 1.0
    assert reward(hungry, "pass", code_rm_memory_mb=300) == 0.0


@pytest.mark.parametrize(
    "program", ["while True: print('x' * 1000)", "open('f', 'wb').write(bytes(20 << 20))"]
)
def test_a_program_cannot_write_without_limit(program: str) -> None:
    assert reward(program, "pass") == 0.0


def test_a_program_sees_nothing_of_our_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPALIER_SECRET", "1")
    assert reward("import os", "assert 'ESPALIER_SECRET' not in os.environ") == 1.0


@pytest.mark.parametrize("label", [None, "", 3, [], ["x"], [{"input": "1"}], [{"input": 1, "output": "1"}]])
def test_a_label_without_tests_is_told(label: Any) -> None:
    with pytest.raises(RolloutError, match="'code' needs a label that is Python"):
        reward("pass", label)


def test_where_programs_cannot_be_kept_off_the_network_they_run_only_if_that_is_allowed() -> None:
    def graded(allowed: str) -> str:
        script = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
        # Where nothing is isolated anyway, nothing has to be forbidden first.
        forbidding = ["unshare", "--user", "--map-root-user", "sh", "-c", script, "sh"]
        command = [*(forbidding if IS_ISOLATED else []), sys.executable, "-c", GRADE, allowed]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert REFUSAL in graded("no")
    assert graded("yes") == "1.0\n"
