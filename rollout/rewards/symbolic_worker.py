"""The process that compares expressions: a JSON line of two texts in, a JSON line of the verdict out.

A program of its own, run by path: it imports nothing of Espalier, so that it starts with sympy alone. An
expression can take for ever or all of the memory. The process limits its memory, and a timer that nothing
in it can catch ends it; who asked then gets no answer.
"""

import json
import resource
import signal
import sys
from collections.abc import Callable


def main() -> None:
    """Answer until there is nothing more to read. Takes the seconds for a pair and the bytes of memory."""
    seconds, memory_bytes = float(sys.argv[1]), int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who asks, who then closes our input
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    is_equal = _comparison()
    _say({"ready": True})
    for line in sys.stdin:
        answer, expected = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            verdict = is_equal(answer, expected)
        except Exception:  # noqa: BLE001  what cannot be read is not shown to be equal
            verdict = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        _say({"equal": verdict})


def _comparison() -> Callable[[str, str], bool]:
    from math_verify import LatexExtractionConfig, parse, verify  # noqa: PLC0415  after the limits

    # LaTeX only: the parser for plain expressions is sympy's, which evaluates them as Python.
    config = [LatexExtractionConfig(boxed_match_priority=0)]

    def read(text: str) -> list[object]:
        boxed = f"\\boxed{{{text}}}"
        return list(parse(boxed, config, parsing_timeout=None, fallback_mode="no_fallback"))

    def is_equal(answer: str, expected: str) -> bool:
        pair = read(expected), read(answer)
        return all(pair) and bool(verify(*pair, timeout_seconds=None, float_rounding=12))

    return is_equal


def _say(message: dict[str, bool]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
