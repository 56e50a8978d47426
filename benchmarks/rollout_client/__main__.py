"""Measures the rollout client on one core, with 2,000 calls in flight, beside a stand-in for slime's loop.

    python -m benchmarks.rollout_client             everything: about five minutes on two quiet cores
    python -m benchmarks.rollout_client --only espalier --samples 4000

Replies are of 1,024 tokens with log-probabilities. The client has one core to itself; what answers it, and
the router where one is between, share the other. Prints a table for docs/benchmarks.md.
"""

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.comparison.machine import machine
from benchmarks.comparison.processes import free_port, running

from .measured import TOKENIZER, Measurement

CLIENT_CORE: Final = 1
OTHER_CORE: Final = 0
STARTS_WITHIN_S: Final = 30
GIVES_UP_AFTER_S: Final = 600

SUBJECTS: Final = {
    "espalier": ("espalier", ()),
    "espalier-router": ("espalier", ("--middleware", "none")),
    "espalier-recording": ("espalier", ("--tokenizer-path", str(TOKENIZER))),
    "slime": ("slime", ()),
}
"""Name -> the client, and the flags of the router between it and the upstream (none: no router)."""

NAMES: Final = {
    "espalier": "Espalier's client",
    "espalier-router": "Espalier's client, through its router",
    "espalier-recording": "Espalier's client, through its router, recording",
    "slime": "stand-in for slime's loop",
}


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        prog="python -m benchmarks.rollout_client",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", choices=SUBJECTS, action="append", help="measure this; may be repeated")
    parser.add_argument("--samples", type=int, default=8000, help="samples of a measurement")
    parser.add_argument("--slime-samples", type=int, default=2000, help="samples of the slower stand-in's")
    parser.add_argument("--in-flight", type=int, default=2000, help="calls at a time")
    parser.add_argument("--tokens", type=int, default=1024, help="tokens of a reply")
    parser.add_argument("--reply-after-s", type=float, default=0.5, help="time until a reply is sent")
    parser.add_argument(
        "--rounds", type=int, default=3, help="how often each is measured; the median is told"
    )
    options = parser.parse_args()
    print(f"{machine()}.\n")
    print("| | samples/s | CPU a sample | most in flight | peak memory |")
    print("|---|---:|---:|---:|---:|")
    for subject in options.only or SUBJECTS:
        client, router_flags = SUBJECTS[subject]
        samples = options.slime_samples if client == "slime" else options.samples
        rounds = [
            _round(
                client,
                router_flags,
                samples=samples,
                in_flight=options.in_flight,
                tokens=options.tokens,
                reply_after_s=options.reply_after_s,
            )
            for _ in range(options.rounds)
        ]
        print(_row(NAMES[subject], rounds), flush=True)
    return 0


def _round(
    client: str,
    router_flags: tuple[str, ...],
    *,
    samples: int,
    in_flight: int,
    tokens: int,
    reply_after_s: float,
) -> tuple[Measurement, int]:
    """Return what was measured, and the most calls that were in flight at a time."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder, port = Path(name), free_port()
        upstream = ["-m", "benchmarks.rollout_client.upstream", str(port), str(tokens), str(reply_after_s)]
        stack.enter_context(_serving(upstream, port, folder / "upstream.log"))
        asked = port
        if router_flags:
            asked = free_port()
            router = ["-m", "espalier", "router", "--host", "127.0.0.1", "--port", str(asked)]
            router += ["--worker-urls", f"http://127.0.0.1:{port}", "--log-level", "warning"]
            stack.enter_context(_serving([*router, *router_flags], asked, folder / "router.log"))
        own = [sys.executable, "-m", "benchmarks.rollout_client.measured", client]
        own += [f"http://127.0.0.1:{asked}", str(samples), str(in_flight), name]
        done = subprocess.run(
            ["taskset", "-c", str(CLIENT_CORE), *own],
            capture_output=True,
            text=True,
            check=False,
            timeout=GIVES_UP_AFTER_S,
        )
        if done.returncode:
            raise RuntimeError(f"the client failed:\n{done.stderr[-2000:]}")
        measured = msgspec.json.decode(done.stdout.partition("RESULT ")[2], type=Measurement)
        assert measured.tokens >= samples * tokens
        if "--tokenizer-path" in router_flags:
            stats = msgspec.json.decode(_get(asked, "/radix_tree/stats"))
            assert stats["calls_recorded_total"] >= samples
        return measured, int(_get(port, "/most_in_flight"))


@contextlib.contextmanager
def _serving(arguments: list[str], port: int, log: Path) -> Iterator[None]:
    """Run a Python program that serves `port`; the block begins once it does."""
    with running([sys.executable, *arguments], core=OTHER_CORE, log=log) as process:
        deadline_s = time.monotonic() + STARTS_WITHIN_S
        while True:
            try:
                _get(port, "/readiness")
            except OSError:
                if process.has_ended or time.monotonic() > deadline_s:
                    raise RuntimeError(f"nothing serves port {port}:\n{process.last_words()}") from None
                time.sleep(0.05)
            else:
                break
        yield


def _get(port: int, path: str) -> bytes:
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()


def _row(name: str, rounds: list[tuple[Measurement, int]]) -> str:
    """Return a line of the table: the median round."""
    measured, most = sorted(rounds, key=lambda each: each[0].samples / each[0].wall_s)[len(rounds) // 2]
    rate, cpu_ms = measured.samples / measured.wall_s, 1000 * measured.cpu_s / measured.samples
    return f"| {name} | {rate:,.0f} | {cpu_ms:.2f} ms | {most:,} | {measured.peak_memory_mib:,.0f} MiB |"


if __name__ == "__main__":
    sys.exit(main())
