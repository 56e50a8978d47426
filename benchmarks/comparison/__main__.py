"""Measures Espalier beside other routers, each on one core, and writes docs/benchmarks.md.

    make bench                  everything: about 20 minutes, best on a machine that does nothing else
    make bench ARGS=--quick     what the goals are about: 2 minutes; the documents stay as they are
    make bench ARGS=--redraw    the report and the plot again, from the results that are kept

Needs two cores, wrk and nginx with its echo module (Debian: apt-get install wrk nginx-light).
"""

import argparse
import contextlib
import datetime
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from .answers import worker_answers
from .environment import Environment, prepare
from .experiment import Experiment, WorkerFailed, decoding_us
from .machine import machine, revision, versions
from .nginx import echo_module
from .processes import SEARCH_PATH
from .report import markdown, write_document
from .results import Results, Row, read_results, write_results
from .scenarios import FULL, QUICK, Scenario
from .subjects import SUBJECTS

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks/results.json"
QUICK_RESULTS = ROOT / "runs/quick-benchmark.json"
DOCUMENT = ROOT / "docs/benchmarks.md"
PLOT = ROOT / "docs/benchmarks.svg"


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, prog="make bench", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--quick", action="store_true", help="the goals' scenarios only; writes no document")
    way.add_argument("--redraw", action="store_true", help="measure nothing; write report and plot anew")
    parser.add_argument("--rounds", type=int, default=3, help="how often each subject is measured")
    parser.add_argument("--seconds", type=int, help="length of one measurement; 3, or 2 with --quick")
    options = parser.parse_args()
    environment = prepare()
    if options.redraw:
        _write(read_results(RESULTS), environment)
        return 0
    lacking = _lacking()
    if lacking:
        print(lacking, file=sys.stderr)
        return 2
    seconds = options.seconds or (2 if options.quick else 3)
    scenarios = list(QUICK if options.quick else FULL)
    missing = dict(environment.missing)
    if echo_module() is None:
        missing["streamed replies"] = "nginx has no echo module; apt-get install libnginx-mod-http-echo"
        scenarios = [each for each in scenarios if not each.is_streamed]
    results = _measure(scenarios, environment, missing, rounds=options.rounds, seconds=seconds)
    print(markdown(results))
    if options.quick:
        write_results(results, QUICK_RESULTS)
    else:
        write_results(results, RESULTS)
        _write(results, environment)
    return 0


def _lacking() -> str | None:
    if len(os.sched_getaffinity(0)) < 2:
        return "two cores are needed: one for the router, one for the client and the worker"
    programs = [each for each in ("wrk", "nginx", "taskset") if shutil.which(each, path=SEARCH_PATH) is None]
    if programs:
        return f"{', '.join(programs)} missing: apt-get install wrk nginx-light util-linux"
    return None


def _measure(
    scenarios: list[Scenario], environment: Environment, missing: dict[str, str], *, rounds: int, seconds: int
) -> Results:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, hard), hard))
    subjects = [each for each in SUBJECTS if each.requirement not in environment.missing]
    rows: list[Row] = []
    yardstick_us: list[float] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)  # nginx's worker is another user
        experiment = Experiment(
            subjects=subjects,
            rounds=rounds,
            seconds=seconds,
            peers_python=environment.python,
            answers=worker_answers(folder),
            folder=folder,
        )
        for scenario in scenarios:
            yardstick_us.append(decoding_us())
            print(f"{scenario} (yardstick {yardstick_us[-1]:,.0f} µs)", flush=True)
            try:
                outcome = experiment.run(scenario)
            except WorkerFailed as error:
                missing[str(scenario)] = str(error)
                print(f"  {error}", file=sys.stderr, flush=True)
                continue
            for row in outcome.rows:
                rates = "  ".join(f"{each.replies_per_s:9,.0f}" for each in row.rounds)
                print(f"  {row.subject:20} {rates}  replies/s", flush=True)
            rows += outcome.rows
            for name, reason in outcome.failures.items():
                print(f"  {reason}", file=sys.stderr, flush=True)
                missing[f"{name} at {scenario}"] = reason
    return Results(
        day=datetime.datetime.now(datetime.UTC).date().isoformat(),
        machine=machine(),
        revision=revision(),
        versions=versions() | environment.versions,
        missing=missing,
        yardstick_us=yardstick_us,
        rows=rows,
    )


def _write(results: Results, environment: Environment) -> None:
    write_document(results, DOCUMENT, PLOT.name)
    command = [environment.python, "-m", "benchmarks.comparison.plot", str(RESULTS), str(PLOT)]
    subprocess.run(command, cwd=ROOT, check=True)
    print(f"written: {DOCUMENT.relative_to(ROOT)}, {PLOT.relative_to(ROOT)}")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
