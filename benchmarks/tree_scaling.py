"""What inserting and matching cost as the radix tree grows, and how much memory a stored token takes.

usage: python benchmarks/tree_scaling.py [--quick]

Each row is measured in a process of its own, on the tree alone: no tokenizer, no HTTP. Trajectories have a
quarter of their tokens in the prompt and the rest in the reply, with log-probabilities, and four characters
a token. In "prompts" they differ from the first token on; in "siblings" they share one prompt of 25,000
tokens (100,000 characters). Times are medians of the last insertions, and of matches at the end; memory is
what the process has grown by, the allocator's own included.
"""

import argparse
import gc
import json
import random
import statistics
import subprocess
import sys
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from espalier.middleware.logprobs import pack_logprobs
from espalier.middleware.segments import Logprobs, Tokens
from espalier.middleware.tree import Sampled, TokenTree
from espalier.sglang import WeightSpan

VOCABULARY_SIZE = 150_000
CHARS_PER_TOKEN = 4
SIBLINGS_PROMPT_TOKENS = 25_000
TIMED = 200
"""Operations of a kind that are timed."""

ROWS = [
    *(("prompts", count, 100) for count in (100, 1_000, 10_000, 100_000)),
    *(("prompts", count, 1_000) for count in (100, 1_000, 10_000)),
    *(("prompts", count, 32_000) for count in (10, 100, 300)),
    *(("siblings", count, 100) for count in (100, 1_000, 10_000, 100_000)),
]
MAX_QUICK_TOKENS = 1_500_000


class Turn(NamedTuple):
    """What a call sends and what is sampled."""

    prompt: Tokens
    prompt_text: str
    reply: Tokens
    reply_text: str
    logprobs: Logprobs


class Turns:
    """Makes turns, each from its number alone, so that none has to be kept."""

    def __init__(self, shape: str, length: int) -> None:
        self._shape = shape
        self._length = length
        if shape == "siblings":
            rng = random.Random("shared")
            self._shared = _ids(rng, SIBLINGS_PROMPT_TOKENS), _text(rng, SIBLINGS_PROMPT_TOKENS)

    def __getitem__(self, number: int) -> Turn:
        rng = random.Random(number)
        prompt_tokens = 0 if self._shape == "siblings" else self._length // 4
        reply_tokens = self._length - prompt_tokens
        prompt, text = (
            self._shared
            if self._shape == "siblings"
            else (_ids(rng, prompt_tokens), _text(rng, prompt_tokens))
        )
        reply, logprobs = _ids(rng, reply_tokens), pack_logprobs([-0.5] * reply_tokens)
        return Turn(prompt, text, reply, _text(rng, reply_tokens), logprobs)


def _ids(rng: random.Random, count: int) -> Tokens:
    return array("i", [each % VOCABULARY_SIZE for each in memoryview(rng.randbytes(4 * count)).cast("I")])


def _text(rng: random.Random, tokens: int) -> str:
    letters = bytes(97 + at % 26 for at in range(256))
    return rng.randbytes(tokens * CHARS_PER_TOKEN).translate(letters).decode()


def insert(tree: TokenTree, number: int, turn: Turn) -> None:
    """Record one turn as the middleware does."""
    match = tree.match_text(turn.prompt_text, None)
    prefix = tree.hold(match, match.cut(None))
    tree.release(match)
    rest = turn.prompt[len(prefix.tokens) :]
    context = tree.open_context(prefix, rest, turn.prompt_text, is_canonical=True)
    tree.release(prefix)
    tree.record(
        context,
        Sampled(
            rid=f"rid-{number}",
            session_id=None,
            tokens=turn.reply,
            logprobs=turn.logprobs,
            weight_versions=(WeightSpan(version="1", start=0, end=len(turn.reply)),),
            finish_type="length",
            text=turn.reply_text,
        ),
    )
    tree.release(context)


def match_text(tree: TokenTree, turn: Turn) -> None:
    """Find what the next turn's text reuses: all of this one."""
    text = turn.prompt_text + turn.reply_text + " and on"
    match = tree.match_text(text, None)
    prefix = tree.hold(match, match.cut(None))
    assert len(prefix.tokens) == len(turn.prompt) + len(turn.reply)
    tree.release(match)
    tree.release(prefix)


def match_ids(tree: TokenTree, turn: Turn) -> None:
    """Find what the next turn's ids reuse: all of this one."""
    prefix = tree.match_ids(turn.prompt + turn.reply + array("i", [1]), None)
    assert len(prefix.tokens) == len(turn.prompt) + len(turn.reply)
    tree.release(prefix)


def measure(shape: str, count: int, length: int) -> dict[str, float]:
    """Return one row's figures, of a tree of `count` trajectories of `length` tokens."""
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
    tree = TokenTree(max_cached_tokens=10**9, max_cached_bytes=10**12)
    turns = Turns(shape, length)
    before = rss_bytes()
    inserts: list[float] = []
    for number in range(count):
        turn = turns[number]
        start = time.perf_counter()
        insert(tree, number, turn)
        if number >= count - TIMED:
            inserts.append(time.perf_counter() - start)
    gc.collect()
    grown = rss_bytes() - before
    chosen = [turns[number] for number in random.Random(0).sample(range(count), min(count, TIMED))]
    return {
        "tokens": tree.cached_tokens,
        "insert_us": 1e6 * statistics.median(inserts),
        "match_text_us": median_us(lambda turn: match_text(tree, turn), chosen),
        "match_ids_us": median_us(lambda turn: match_ids(tree, turn), chosen),
        "bytes_per_token": grown / tree.cached_tokens,
    }


def median_us(operation: Callable[[Turn], None], turns: list[Turn]) -> float:
    """Return the median time of `operation` on each of `turns`."""
    times = []
    for turn in turns:
        start = time.perf_counter()
        operation(turn)
        times.append(time.perf_counter() - start)
    return 1e6 * statistics.median(times)


def rss_bytes() -> int:
    """Return the memory that this process occupies (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only the smaller rows")
    parser.add_argument("--row", nargs=3, metavar=("SHAPE", "COUNT", "LENGTH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        shape, count, length = options.row
        print(json.dumps(measure(shape, int(count), int(length))))
        return
    columns = ["shape", "trajectories", "tokens each", "stored tokens", "insert µs"]
    columns += ["match text µs", "match ids µs", "bytes a token"]
    print(f"| {' | '.join(columns)} |")
    print(f"|{'---|' * len(columns)}")
    for shape, count, length in ROWS:
        if options.quick and count * length > MAX_QUICK_TOKENS:
            continue
        command = [sys.executable, __file__, "--row", shape, str(count), str(length)]
        row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(
            f"| {shape} | {count:,} | {length:,} | {row['tokens']:,} | {row['insert_us']:.0f} | "
            f"{row['match_text_us']:.0f} | {row['match_ids_us']:.0f} | {row['bytes_per_token']:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
