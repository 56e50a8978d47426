"""Whether the radix tree's memory stays flat: ten times its budget of tokens goes through it.

usage: python benchmarks/tree_soak.py [--tokens 10000000] [--budget 1000000] [--plot docs/tree_soak.svg]

Exchanges of up to six turns run beside each other, eight siblings start from each prompt, some go back and
retry, most belong to a session, and the weights change now and then. Times in which nothing is deleted, so
that the budget decides what goes, change with times in which most exchanges are deleted when they are done,
so that what was left before expires or gets too old. Each trajectory is checked, token by token, when it was
recorded. Prints and plots the process's memory.
"""

import argparse
import gc
import random
import time
from array import array
from dataclasses import dataclass, field
from pathlib import Path

from espalier.middleware.segments import Generation, Tokens, path, tokens_of
from espalier.middleware.tree import Sampled, TokenTree
from espalier.sglang import WeightSpan

VOCABULARY_SIZE = 150_000
CHARS_PER_TOKEN = 4
PROMPT_TOKENS = (40, 400)
OBSERVATION_TOKENS = (10, 200)
REPLY_TOKENS = (20, 800)
MAX_TURNS = 6
SIBLINGS = 8
SESSIONS_AT_ONCE = 64
CALLS_A_VERSION = 500
MAX_VERSION_LAG = 6
SESSION_TTL_CALLS = 3000
"""Sessions that were not used for so many calls expire: the clock counts calls."""

CALLS_A_PHASE = 4000
DELETED = (0.0, 0.95)
"""The share of exchanges that are deleted when they are done, in turns."""

WITHOUT_SESSION = 0.1
"""The share of exchanges that name no session."""

SAMPLES = 200


@dataclass
class Session:
    """A client's view of one exchange: the text and tokens so far."""

    name: str | None
    text: str
    tokens: Tokens
    turns: int = 0
    earlier: list[tuple[str, Tokens]] = field(default_factory=list)


class Soak:
    """Plays sessions against a tree, one call after the other."""

    def __init__(self, budget_tokens: int) -> None:
        self.calls = 0
        self.recorded_tokens = 0
        self.tree = TokenTree(
            max_cached_tokens=budget_tokens,
            max_cached_bytes=1 << 40,
            max_version_lag=MAX_VERSION_LAG,
            session_ttl_s=SESSION_TTL_CALLS,
            clock=lambda: float(self.calls),
        )
        self._rng = random.Random(0)
        self._sessions: list[Session] = []
        self._started = 0
        self._prompt: tuple[str, Tokens] = ("", array("i"))

    def play_call(self) -> None:
        """Play one turn of one of the sessions."""
        while len(self._sessions) < SESSIONS_AT_ONCE:
            self._sessions.append(self._start())
        at = self._rng.randrange(len(self._sessions))
        session = self._sessions[at]
        self._play(session)
        if session.turns >= MAX_TURNS or self._rng.random() < 0.1:
            self._sessions.pop(at)
            deleted = DELETED[self.calls // CALLS_A_PHASE % len(DELETED)]
            if session.name is not None and self._rng.random() < deleted:
                self.tree.forget_session(session.name)

    def _start(self) -> Session:
        if self._started % SIBLINGS == 0:
            self._prompt = self._made(*PROMPT_TOKENS)
        self._started += 1
        text, tokens = self._prompt
        is_named = self._rng.random() >= WITHOUT_SESSION
        return Session(f"session-{self._started}" if is_named else None, text, tokens[:])

    def _play(self, session: Session) -> None:
        self.calls += 1
        if session.earlier and self._rng.random() < 0.1:
            session.text, session.tokens = self._rng.choice(session.earlier)
        session.earlier.append((session.text, session.tokens))
        text, reply = self._made(*REPLY_TOKENS)
        logprobs = array("d", [-self._rng.random() for _ in reply])
        generation = self._record(session, text, reply, logprobs)
        assert tokens_of(path(generation, generation.end)) == session.tokens + reply
        assert generation.logprobs == logprobs
        more, observed = self._made(*OBSERVATION_TOKENS)
        session.text += text + more
        session.tokens = session.tokens + reply + observed
        session.turns += 1

    def _record(self, session: Session, text: str, reply: Tokens, logprobs: "array[float]") -> Generation:
        tree = self.tree
        match = tree.match_text(session.text, session.name)
        prefix = tree.hold(match, match.cut(None))
        tree.release(match)
        rest = session.tokens[len(prefix.tokens) :]
        context = tree.open_context(prefix, rest, session.text, is_canonical=True)
        tree.release(prefix)
        version = str(self.calls // CALLS_A_VERSION)
        generation = tree.record(
            context,
            Sampled(
                rid=f"rid-{self.calls}",
                session_id=session.name,
                tokens=reply,
                logprobs=logprobs,
                weight_versions=(WeightSpan(version=version, start=0, end=len(reply)),),
                finish_type="length",
                text=text,
            ),
        )
        tree.release(context)
        self.recorded_tokens += len(rest) + len(reply)
        return generation

    def _made(self, fewest: int, most: int) -> tuple[str, Tokens]:
        count = self._rng.randint(fewest, most)
        letters = bytes(97 + at % 26 for at in range(256))
        text = self._rng.randbytes(count * CHARS_PER_TOKEN).translate(letters).decode()
        ids = memoryview(self._rng.randbytes(4 * count)).cast("I")
        return text, array("i", [each % VOCABULARY_SIZE for each in ids])


def rss_mib() -> float:
    """Return the memory that this process occupies (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def plot(points: list[tuple[float, float]], budget_tokens: int) -> str:
    """Return an SVG of memory (MiB) over tokens recorded."""
    width, height, left, bottom = 640, 280, 60, 40
    most_x = points[-1][0]
    most_y = 1.25 * max(y for _, y in points)

    def place(x: float, y: float) -> tuple[float, float]:
        return left + (width - left - 20) * x / most_x, height - bottom - (height - bottom - 30) * y / most_y

    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
    marks = []
    for step in range(6):
        x, zero = place(most_x * step / 5, 0)
        marks.append(
            f'<text x="{x:.0f}" y="{zero + 16:.0f}" text-anchor="middle">{most_x * step / 5e6:.0f} M</text>'
        )
        _, y = place(0, most_y * step / 5)
        marks.append(f'<text x="{left - 6}" y="{y + 4:.0f}" text-anchor="end">{most_y * step / 5:.0f}</text>')
        marks.append(f'<path d="M{left} {y:.1f}H{width - 20}" stroke="#ddd"/>')
    full, _ = place(budget_tokens, 0)
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"
 font-family="sans-serif" font-size="11">
<rect width="{width}" height="{height}" fill="#fff"/>
<text x="{left}" y="18" font-size="13">Memory of the process (MiB) over tokens recorded</text>
{chr(10).join(marks)}
<path d="M{full:.1f} 30V{height - bottom}" stroke="#999" stroke-dasharray="4 3"/>
<text x="{full + 4:.1f}" y="40" fill="#666">the budget: {budget_tokens:,} tokens</text>
<polyline points="{line}" fill="none" stroke="#0a6" stroke-width="2"/>
</svg>
"""


def main() -> None:
    """Run the soak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tokens", type=int, default=10_000_000)
    parser.add_argument("--budget", type=int, default=1_000_000)
    parser.add_argument("--plot", type=Path, help="where to write the plot (SVG)")
    options = parser.parse_args()
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
    soak = Soak(options.budget)
    points: list[tuple[float, float]] = [(0, rss_mib())]
    start = time.perf_counter()
    print(
        "recorded tokens | stored tokens | trajectories | sessions | tree's own estimate, MiB | process, MiB"
    )
    while soak.recorded_tokens < options.tokens:
        soak.play_call()
        if soak.recorded_tokens >= len(points) * options.tokens / SAMPLES:
            points.append((soak.recorded_tokens, rss_mib()))
            if len(points) % (SAMPLES // 10) == 1:
                tree = soak.tree
                print(
                    f"{soak.recorded_tokens:,} | {tree.cached_tokens:,} | {tree.trajectories:,} | "
                    f"{tree.sessions:,} | {tree.cached_bytes / 2**20:.1f} | {rss_mib():.1f}",
                    flush=True,
                )
    print(f"{soak.calls:,} calls in {time.perf_counter() - start:.0f} s")
    tree = soak.tree
    print(f"evicted {tree.evicted_tokens:,} tokens; expired {tree.expired_sessions:,} sessions")
    print(f"too old: {tree.outdated_trajectories:,} trajectories")
    if options.plot is not None:
        options.plot.write_text(plot(points, options.budget))


if __name__ == "__main__":
    main()
