"""Reads the arithmetic in a prompt.

The last user turn is read, or the whole prompt where there are no turns. In this order:

1.  An explicit expression, the last one in the text: whole numbers (`1,200` too), `+ - * / ( )`, also `x`,
    the signs U+00D7, U+00F7 and U+2212, `plus`, `minus`, `times`, `divided by`, with the usual precedence:
    `What is 17 * (24 - 3)?`
2.  A word problem. Sentences are cut into clauses at punctuation, `and`, `then` and `but`; each clause with a
    number changes a running total, which the first one starts:

        two numbers and `each`      counts their product:       3 boxes with 12 pencils each
        one number and `each`       multiplies the total:       Each box holds 12 pencils
        a verb of gain, or has/are  adds to it:                 buys 30 more; finds 5; has 7 apples
        a verb of loss              takes from it:              gives away 5; loses 3; eats 2; sells 9

    Clauses that start with `how`, and clauses without such a verb, change nothing.

A prompt without an operation, or with a division that leaves a rest, has no arithmetic.
"""

import re
from dataclasses import dataclass

MAX_TEXT = 8192
"""Characters that are read, from the end of the prompt."""

MAX_DIGITS = 12
"""Longer numbers are no arithmetic for a small model."""

_GAIN_VERBS = (
    "has have had are were contains holds buys buy bought gets get got finds find found receives receive "
    "received picks picked collects collected earns earned wins won gains gained makes made bakes baked "
    "adds added grows grew catches caught saves saved"
)
_GAINS = frozenset(_GAIN_VERBS.split())
_LOSS_VERBS = (
    "gives give gave loses lose lost eats eat ate sells sell sold uses use used spends spend spent breaks "
    "break broke drops dropped throws threw removes removed donates donated"
)
_LOSSES = frozenset(_LOSS_VERBS.split())
_EACH = frozenset(("each", "every"))
_WORDS_FOR_OPERATORS = (
    (re.compile(r"(?<=\d)\s*(?:x|\u00d7|\btimes\b|multiplied by)\s*(?=[\d(])"), " * "),
    (re.compile(r"(?<=\d)\s*(?:\u00f7|divided by)\s*(?=[\d(])"), " / "),
    (re.compile(r"(?<=\d)\s*\bplus\b\s*(?=[\d(])"), " + "),
    (re.compile(r"(?<=\d)\s*(?:\u2212|\bminus\b)\s*(?=[\d(])"), " - "),
)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_TURN = re.compile(r"<\|im_start\|>user\n(.*?)(?:<\|im_end\|>|\Z)", re.DOTALL)
_RUN = re.compile(r"[\d(][\d\s()+*/-]*")
_SYMBOL = re.compile(r"\d+|[-+*/()]")
_CLAUSE = re.compile(r"[.,;:?!\n]|\band\b|\bthen\b|\bbut\b")
_WORD = re.compile(r"[a-z]+|\d+")
_PRECEDENCE = {")": 0, "+": 1, "-": 1, "*": 2, "/": 2}


@dataclass(frozen=True, slots=True)
class Step:
    """One operation, as it would be written down: `12 + 30` is `value`."""

    operation: str
    value: int


@dataclass(frozen=True, slots=True)
class Problem:
    """At least one step; the value of the last one is the answer."""

    steps: tuple[Step, ...]

    @property
    def answer(self) -> int:
        """The right number."""
        return self.steps[-1].value


def read_problem(prompt: str) -> Problem | None:
    """Return the arithmetic in `prompt`, or None where there is none that can be read."""
    text = prompt[-MAX_TEXT:]
    turns = _TURN.findall(text)
    if turns:
        text = turns[-1]
    text = _THOUSANDS.sub("", text)
    return _read_expression(text) or _read_story(text)


def _read_expression(text: str) -> Problem | None:
    for pattern, operator in _WORDS_FOR_OPERATORS:
        text = pattern.sub(operator, text)
    for run in reversed(_RUN.findall(text)):
        steps = _evaluate(_SYMBOL.findall(run))
        if steps:
            return Problem(steps)
    return None


def _evaluate(symbols: list[str]) -> tuple[Step, ...] | None:
    """Return the steps of an infix expression, by two stacks; None where it is not well formed."""
    values: list[int] = []
    operators: list[str] = []
    steps: list[Step] = []
    value_expected = True
    for symbol in symbols:
        if value_expected != (symbol == "(" or symbol.isdigit()):
            return None
        if symbol == "(":
            operators.append(symbol)
        elif symbol.isdigit():
            if len(symbol) > MAX_DIGITS:
                return None
            values.append(int(symbol))
            value_expected = False
        else:
            if not _apply_down_to(_PRECEDENCE[symbol], operators, values, steps):
                return None
            if symbol == ")":
                if not operators:
                    return None
                operators.pop()
            else:
                operators.append(symbol)
                value_expected = True
    complete = not value_expected and "(" not in operators
    return tuple(steps) if complete and _apply_down_to(0, operators, values, steps) else None


def _apply_down_to(precedence: int, operators: list[str], values: list[int], steps: list[Step]) -> bool:
    """Carry out what binds at least so strongly, from the top of the stack down to a parenthesis."""
    while operators and operators[-1] != "(" and _PRECEDENCE[operators[-1]] >= precedence:
        if not _apply(operators.pop(), values, steps):
            return False
    return True


def _apply(operator: str, values: list[int], steps: list[Step]) -> bool:
    right, left = values.pop(), values.pop()
    if operator == "+":
        value = left + right
    elif operator == "-":
        value = left - right
    elif operator == "*":
        value = left * right
    elif right == 0 or left % right:
        return False
    else:
        value = left // right
    values.append(value)
    steps.append(Step(f"{left} {operator} {right}", value))
    return True


def _read_story(text: str) -> Problem | None:
    total: int | None = None
    steps: list[Step] = []

    def combine(operator: str, left: int, right: int) -> int:
        value = {"+": left + right, "-": left - right, "*": left * right}[operator]
        steps.append(Step(f"{left} {operator} {right}", value))
        return value

    for clause in _CLAUSE.split(text.lower()):
        words = _WORD.findall(clause)
        numbers = [int(word) for word in words if word.isdigit() and len(word) <= MAX_DIGITS]
        if not numbers or words[0] == "how":
            continue
        has_each = not _EACH.isdisjoint(words)
        if has_each and len(numbers) == 1 and total is not None:
            total = combine("*", total, numbers[0])
            continue
        amount = numbers[0]
        if has_each and len(numbers) > 1:
            amount = combine("*", numbers[0], numbers[1])
        if total is None:
            total = amount
        elif not _LOSSES.isdisjoint(words):
            total = combine("-", total, amount)
        elif not _GAINS.isdisjoint(words):
            total = combine("+", total, amount)
    return Problem(tuple(steps)) if steps else None
