"""Measures all subjects in one scenario: side by side, in rounds, so that a machine's moods hit all alike.

The subjects have one core, of which only one of them uses anything at a time; the client and the worker have
the other. A subject is measured only once it has given the worker's reply, and every call that fails in a
measurement is counted, so that nobody is fast by failing.
"""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Final

from .load import request_body, run_load
from .nginx import expected_body, static_worker
from .processes import Running, core_time, free_port, running
from .results import Round, Row
from .scenarios import Scenario
from .subjects import ONE_THREAD, Place, Subject

ROUTER_CORE: Final = 0
LOAD_CORE: Final = 1

READY_WITHIN_S: Final = 60
"""How long a subject may take until it gives the worker's reply; some look at their workers first."""

WARM_UP_S: Final = 1

_YARDSTICK = """
import timeit
from espalier.sglang import decode_reply
from benchmarks.comparison.replies import whole_reply
reply = whole_reply(1024)
print(min(timeit.repeat(lambda: decode_reply(reply), number=100, repeat=20)) / 100 * 1e6)
"""


class SubjectFailed(Exception):
    """A subject does not give the worker's reply; the message says what it does."""


class WorkerFailed(Exception):
    """The worker itself does not give its reply: nothing can be measured."""


@dataclass(slots=True, kw_only=True)
class _Measured:
    """A subject that runs, and what was measured of it so far."""

    subject: Subject
    port: int
    process: Running | None
    reply: str
    rounds: list[Round] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a scenario gave, and why it did not for some subjects, by name."""

    rows: list[Row] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)


def decoding_us() -> float:
    """Return the time that the routers' core takes just now to decode one reply of 1,024 tokens."""
    command = ["taskset", "-c", str(ROUTER_CORE), sys.executable, "-c", _YARDSTICK]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """Runs scenarios. `answers` is what the worker answers on the paths that are not `/generate`."""

    subjects: Sequence[Subject]
    rounds: int
    seconds: int
    peers_python: str
    answers: Mapping[str, bytes]
    folder: Path

    def run(self, scenario: Scenario) -> Outcome:
        """Measure every subject in `scenario`.

        Raises: WorkerFailed.
        """
        folder = _made(self.folder / "worker")
        port = free_port()
        with contextlib.ExitStack() as stack:
            worker = stack.enter_context(
                static_worker(scenario, port=port, answers=self.answers, core=LOAD_CORE, folder=folder)
            )
            try:
                _wait_for_reply("the static worker", port, worker, scenario)
            except SubjectFailed as error:
                raise WorkerFailed(str(error)) from None
            outcome = Outcome()
            measured = self._start(scenario, port, stack, outcome)
            for number in range(self.rounds + 1):
                for at in range(len(measured)):
                    self._measure(measured[(at + number) % len(measured)], scenario, number)
            outcome.rows.extend(_row(each, scenario) for each in measured)
            return outcome

    def _start(
        self, scenario: Scenario, worker_port: int, stack: contextlib.ExitStack, outcome: Outcome
    ) -> list[_Measured]:
        """Start all subjects, side by side; return those that give the worker's reply."""
        started = []
        for subject in self.subjects:
            port, process = worker_port, None
            if subject.command is not None:
                port = free_port()
                folder = _made(self.folder / subject.name.replace(" ", "-"))
                place = Place(
                    scenario=scenario,
                    port=port,
                    worker_port=worker_port,
                    folder=folder,
                    peers_python=self.peers_python,
                )
                process = stack.enter_context(
                    running(
                        subject.command(place), core=ROUTER_CORE, log=folder / "log", variables=ONE_THREAD
                    )
                )
            started.append((subject, port, process))
        measured = []
        for subject, port, process in started:
            try:
                reply = _wait_for_reply(subject.name, port, process, scenario)
            except SubjectFailed as error:
                outcome.failures[subject.name] = str(error)
            else:
                measured.append(_Measured(subject=subject, port=port, process=process, reply=reply))
        return measured

    def _measure(self, measured: _Measured, scenario: Scenario, number: int) -> None:
        """Measure one subject once. The first time only warms it up."""
        process = measured.process
        before_s = process.cpu_s() if process is not None else 0.0
        core_before = core_time(ROUTER_CORE)
        load = run_load(
            scenario,
            port=measured.port,
            seconds=max(self.seconds, scenario.least_seconds) if number else WARM_UP_S,
            core=LOAD_CORE,
            folder=self.folder,
            first_prompt=number,
        )
        if not number:
            return
        cpu_s = process.cpu_s() - before_s if process is not None else None
        idle_share = core_time(ROUTER_CORE).idle_share_since(core_before)
        is_short = (load.calls - load.failed) * len(expected_body(scenario)) > load.bytes
        failed = load.calls if is_short else load.failed
        answered = load.calls - failed
        measured.rounds.append(
            Round(
                replies=answered,
                replies_per_s=answered / load.duration_us * 1e6,
                p50_ms=load.p50_us / 1e3,
                p99_ms=load.p99_us / 1e3,
                cpu_s_per_1000=cpu_s / max(answered, 1) * 1e3 if cpu_s is not None else None,
                core_share=cpu_s / load.duration_us * 1e6 if cpu_s is not None else None,
                idle_share=idle_share,
                failed=failed,
            )
        )


def _row(measured: _Measured, scenario: Scenario) -> Row:
    process = measured.process
    return Row(
        subject=measured.subject.name,
        scenario=scenario,
        rounds=measured.rounds,
        peak_memory_mib=process.peak_memory_mib() if process is not None else None,
        reply=measured.reply,
        recorded_share=_recorded_share(measured.port) if measured.subject.records else None,
    )


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _wait_for_reply(name: str, port: int, process: Running | None, scenario: Scenario) -> str:
    """Return how the reply compares with the worker's, once there is one.

    Raises: SubjectFailed.
    """
    expected = expected_body(scenario)
    deadline_s = time.monotonic() + READY_WITHIN_S
    got = "nothing"
    while time.monotonic() < deadline_s and not (process is not None and process.has_ended):
        try:
            status, body = _ask(port, "POST", "/generate", request_body(scenario))
        except (OSError, HTTPException) as error:
            got = repr(error)
        else:
            if status == 200:
                return _compared(name, body, expected)
            got = f"{status} {body[:200]!r}"
        time.sleep(0.1)
    told = process.last_words() if process is not None else ""
    raise SubjectFailed(f"{name} gives no reply, but {got}\n{told}")


def _compared(name: str, body: bytes, expected: bytes) -> str:
    if body == expected:
        return "byte for byte"
    with contextlib.suppress(ValueError):
        if json.loads(body) == json.loads(expected):
            return "written anew"
    raise SubjectFailed(f"{name} changes the reply: {body[:200]!r}…, {len(body)} bytes for {len(expected)}")


def _recorded_share(port: int) -> float:
    """Return how many of the calls that the router served since its start it recorded."""
    stats: dict[str, int] = json.loads(_ask(port, "GET", "/radix_tree/stats")[1])
    recorded = stats["calls_recorded_total"]
    passed = sum(count for name, count in stats.items() if name.startswith("passed_through_"))
    return recorded / max(recorded + passed + stats["record_failures_total"], 1)


def _ask(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, body, {"content-type": "application/json"})
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()
