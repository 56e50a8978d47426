"""Makes `examples/data/arithmetic.jsonl`: 200 arithmetic problems, the same ones each time.

    python examples/make_arithmetic.py examples/data/arithmetic.jsonl

Half are bare (`What is 17 * 24?`), half are told as stories. A prompt is formatted for chat already and asks
for the answer in a box, so it can be sent as it is; the label is the answer.
"""

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SEED = 20240229
PROBLEMS = 200
INSTRUCTION = "Put the final answer in \\boxed{}."

NAMES = ("Tom", "Mia", "Ben", "Zoe", "Sam", "Ida", "Leo", "Eva")
THINGS = ("apples", "marbles", "stamps", "shells", "coins", "cards", "pens", "cookies")
BOXES = ("boxes", "bags")
GAINS = ("buys", "gets", "finds", "receives")
LOSSES = ("gives away", "loses", "sells")
EDIBLE = ("apples", "cookies")


def bare(rng: random.Random) -> tuple[str, int, str]:
    """Return a question, its answer and its kind."""
    kind = rng.choice(("add", "subtract", "multiply", "add_subtract", "multiply_add"))
    a, b, c = rng.randint(10, 99), rng.randint(10, 99), rng.randint(2, 20)
    match kind:
        case "add":
            return f"What is {a} + {b}?", a + b, kind
        case "subtract":
            a, b = max(a, b), min(a, b)
            return f"What is {a} - {b}?", a - b, kind
        case "multiply":
            return f"What is {a} * {c}?", a * c, kind
        case "add_subtract":
            return f"What is {a} + {b} - {c}?", a + b - c, kind
        case _:
            return f"What is {a} * {c} + {b}?", a * c + b, kind


def story(rng: random.Random) -> tuple[str, int, str]:
    """Return a story with a question, its answer and its kind."""
    kind = rng.choice(("gain", "loss", "gain_loss", "boxes", "boxes_loss"))
    name, things, boxes = rng.choice(NAMES), rng.choice(THINGS), rng.choice(BOXES)
    gains, loses = rng.choice(GAINS), rng.choice((*LOSSES, "eats") if things in EDIBLE else LOSSES)
    a, b = rng.randint(12, 80), rng.randint(5, 60)
    c, n = rng.randint(2, 11), rng.randint(3, 9)
    asked = f"How many {things} does {name} have now?"
    match kind:
        case "gain":
            return f"{name} has {a} {things} and {gains} {b} more. {asked}", a + b, kind
        case "loss":
            return f"{name} has {a} {things} and {loses} {c} of them. {asked}", a - c, kind
        case "gain_loss":
            text = f"{name} has {a} {things}, {gains} {b} more and then {loses} {c} of them. {asked}"
            return text, a + b - c, kind
        case "boxes":
            return f"{name} has {n} {boxes} with {b} {things} each. {asked}", n * b, kind
        case _:
            text = f"{name} has {n} {boxes} with {b} {things} each and {loses} {c} of them. {asked}"
            return text, n * b - c, kind


def problems() -> Iterator[dict[str, Any]]:
    """Yield the dataset's lines; no question comes twice."""
    rng = random.Random(SEED)
    seen: set[str] = set()
    while len(seen) < PROBLEMS:
        text, answer, kind = (story if len(seen) % 2 else bare)(rng)
        if text in seen:
            continue
        prompt = f"<|im_start|>user\n{text} {INSTRUCTION}<|im_end|>\n<|im_start|>assistant\n"
        yield {"prompt": prompt, "label": str(answer), "metadata": {"id": len(seen), "kind": kind}}
        seen.add(text)


def dataset() -> str:
    """Return the dataset as JSON lines."""
    return "".join(json.dumps(problem) + "\n" for problem in problems())


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/make_arithmetic.py OUTPUT.jsonl")
    Path(sys.argv[1]).write_text(dataset(), encoding="utf-8")
