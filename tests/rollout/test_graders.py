"""The built-in rewards that grade an answer: deepscaler, dapo, f1, gpqa, expressions, boxes."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from espalier.errors import PluginError, RolloutError
from espalier.rollout import RolloutConfig, Sample
from espalier.rollout.rewards import async_rm, rewards
from espalier.rollout.rewards.symbolic import SymbolicPool

HERE = __name__


def config(rm_type: str, **changes: Any) -> RolloutConfig:
    return RolloutConfig(prompt_data=Path("unused"), rm_type=rm_type, **changes)


def reward(rm_type: str, response: str, label: Any, *, metadata: dict[str, Any] | None = None) -> Any:
    args = config(rm_type, reward_key="score" if rm_type.endswith("dapo") else None)
    return asyncio.run(async_rm(args, Sample(response=response, label=label, metadata=metadata or {})))


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        (r"2\sqrt{2}", r"\sqrt{8}"),
        ("x(x+1)", "x^2+x"),
        (r"\frac{\sqrt3}{3}", r"\frac{1}{\sqrt 3}"),
        (r"\frac{3\pi}{4}", r"0.75\pi"),
        ("x+y=3", "y+x=3"),
        (r"(1, 2\sqrt2)", r"(1,\sqrt{8})"),
        (r"(\frac12, 3)", "(0.5,3)"),
        ("x=5", "5"),
        ("5", "x = 5"),
        (r"90^\circ", "90"),
        (r"90^{\circ}", "90"),
    ],
)
def test_math_accepts_an_expression_that_is_equal(answer: str, label: str) -> None:
    assert reward("math", rf"\boxed{{{answer}}}", label) == 1.0


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("(x+1)/2", "x+1/2"),
        (r"\frac{1}{2x}", r"\frac{x}{2}"),
        ("nuS", "Sun"),
        ("3+5", "8"),
        (r"(1, 2\sqrt2)", r"(1,\sqrt{9})"),
        ("(1,2)", "[1,2]"),
        ("(1,2)", "(2,1)"),
        ("(1,2,3)", "(1,2)"),
        ("x=5", "y=5"),
        (r"\sqrt", r"\sqrt{2}"),
        ("x^2", ""),
        ("__import__('os')", r"\sqrt{2}"),
    ],
)
def test_math_rejects_an_expression_that_is_another_one(answer: str, label: str) -> None:
    assert reward("math", rf"\boxed{{{answer}}}", label or "x") == 0.0


@pytest.mark.parametrize(
    "hostile",
    ["9^{9^{9^{9}}}", r"\sqrt{" * 60 + "2" + "}" * 60, "(" * 240 + "x" + ")" * 240, "x^{10^9}-y!!!!"],
)
def test_a_hostile_expression_takes_no_more_than_its_time_and_holds_up_nobody(hostile: str) -> None:
    pool = SymbolicPool(time_s=2.0, processes=2)

    async def run() -> tuple[bool, int]:
        ticks = 0
        comparison = asyncio.create_task(pool.is_equal(hostile, r"\sqrt{2}"))
        while not comparison.done():
            await asyncio.sleep(0.01)
            ticks += 1
        return await comparison, ticks

    began = time.monotonic()
    try:
        is_equal, ticks = asyncio.run(run())
        assert time.monotonic() - began < 60
        assert not is_equal
        assert ticks > 5
        assert asyncio.run(pool.is_equal(r"2\sqrt{2}", r"\sqrt{8}")), "the next pair finds a process"
    finally:
        pool.close()


def test_an_expression_that_is_too_long_is_not_compared() -> None:
    pool = SymbolicPool()
    assert not asyncio.run(pool.is_equal("x" * 501, "x" * 501))
    pool.close()


@pytest.mark.parametrize(
    ("response", "label", "expected"),
    [
        (r"<think>\boxed{1}</think> \boxed{2}", "2", 1.0),
        (r"<think>\boxed{2}</think> no", "2", 0.0),
        (r"\boxed{2}", "2", 0.0),
        (r"###Response \boxed{2}", "2", 1.0),
        (r"</think>\boxed{2}", ["1", 2], 1.0),
        (r"</think>\boxed{3}", ["1", 2], 0.0),
        (r"</think>\boxed{0}", 0, 1.0),
        (r"</think>\boxed{x(x+1)}", r"\boxed{x^2+x}", 1.0),
    ],
)
def test_deepscaler_grades_what_stands_behind_the_thoughts(
    response: str, label: Any, expected: float
) -> None:
    assert reward("deepscaler", response, label) == expected


@pytest.mark.parametrize(
    ("response", "label", "right", "predicted"),
    [
        ("Answer: 34", "34", True, "34"),
        ("Answer: 34", 34.0, True, "34"),
        ("answer : $34$", 34, True, "34"),
        ("Answer: 1\nAnswer: 2", "2", True, "2"),
        ("Answer: 1,234 dollars", "1234", True, "1234"),
        (r"Answer: x = \boxed{5}", "5", True, "5"),
        ("Answer: **5**", "5", True, "5"),
        ("Answer: 5.", "5", True, "5"),
        ("Answer: $$5$$", "5", True, "5"),
        ("Answer: 3", 3.7, False, "3"),
        ("Answer: 3.7", 3.7, True, "3.7"),
        ("Answer: 9007199254740993", "9007199254740993", True, "9007199254740993"),
        ("Answer: 9007199254740992", "9007199254740993", False, "9007199254740992"),
        (r"Answer: \frac{1}{2}", "1/2", True, r"\frac{1}{2}"),
        ("Answer: 34" + " " * 300, "34", False, "[INVALID]"),
        ("34", "34", False, "[INVALID]"),
        ("", 0, False, "[INVALID]"),
    ],
)
def test_dapo_returns_score_verdict_and_answer(
    response: str, label: Any, right: bool, predicted: str
) -> None:
    expected = {"score": 1.0 if right else -1.0, "acc": right, "pred": predicted}
    assert reward("dapo", response, label) == expected


@pytest.mark.parametrize(
    ("response", "label", "expected"),
    [
        ("The Eiffel Tower!", "eiffel tower", 1.0),
        ("red blue", "red green", 0.5),
        ("red red", "red", 2 / 3),
        ("yes", "yes.", 1.0),
        ("yes indeed", "yes", 0.0),
        ("no", "no answer", 0.0),
        ("", "", 1.0),
        ("the", "The", 1.0),
        ("?", "!", 0.0),
        ("blue", ["red", "blue"], 1.0),
        ("", "red", 0.0),
    ],
)
def test_f1_counts_shared_words(response: str, label: Any, expected: float) -> None:
    assert reward("f1", response, label) == pytest.approx(expected)


CHOICES = {"choices": ["142", "42", "know", "no"]}


@pytest.mark.parametrize(
    ("response", "label", "metadata", "expected"),
    [
        ("The answer is (B)", "B", {}, 1.0),
        ("The answer is: B", "B", {}, 1.0),
        (r"The answer is \boxed{B}", "B", {}, 1.0),
        (r"\boxed{\text{(B)}}", "B", {}, 1.0),
        ("**Answer: B** because", "b", {}, 1.0),
        ("The answer is clearly B", "B", {}, 1.0),
        ("The answer is A. No: the answer is B.", "B", {}, 1.0),
        ("<think>The answer is A</think>B", "B", {}, 1.0),
        ("I think it must be B", "B", {}, 1.0),
        ("A good guess is B, I think", "B", {}, 1.0),
        ("the answer is a guess", "A", {}, 0.0),
        ("The answer is C", "B", {}, 0.0),
        ("The answer is B", 1, {}, 1.0),
        ("The answer is B", "42", CHOICES, 1.0),
        ("42", "B", CHOICES, 1.0),
        ("142", "B", CHOICES, 0.0),
        ("know", "D", CHOICES, 0.0),
        ("The answer is Z", "A", {"valid_letters": ["A", "Z"], "correct_letter": "z"}, 1.0),
        ("The answer is F", "A", CHOICES, 0.0),
        ("答案", "B", {"choices": ["问题", "答案"]}, 1.0),
        ("", "A", {}, 0.0),
    ],
)
def test_gpqa_grades_the_choice(response: str, label: Any, metadata: dict[str, Any], expected: float) -> None:
    assert reward("gpqa", response, label, metadata=metadata) == expected


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("deepscaler", None),
        ("deepscaler", []),
        ("deepscaler", ["1", {}]),
        ("dapo", ["1"]),
        ("dapo", True),
        ("f1", 3),
        ("f1", []),
        ("gpqa", None),
        ("gpqa", 20),
        ("gpqa", "none of them"),
    ],
)
def test_a_label_of_the_wrong_type_is_told_with_the_rewards_name(name: str, label: Any) -> None:
    with pytest.raises(RolloutError, match=f"'{name}' needs a"):
        reward(name, "</think>Answer: 1", label)


@pytest.mark.parametrize(
    ("name", "response", "label", "expected"),
    [
        ("boxed_math", r"no \boxed{1}, \boxed{2}", "2", 1.0),
        ("boxed_math", "2", "2", 0.0),
        ("boxed_deepscaler", r"\boxed{2}", "2", 1.0),
        ("boxed_gpqa", r"A or C? \boxed{B}", "B", 1.0),
        ("boxed_f1", r"many words \boxed{red}", "red", 1.0),
        ("boxed_f1", "red", "red", 0.0),
        ("boxed_digit_share", r"aaa \boxed{1a}", None, 0.5),
    ],
)
def test_a_boxed_reward_grades_the_last_box_alone(
    name: str, response: str, label: Any, expected: float
) -> None:
    assert reward(name, response, label) == expected


def test_a_boxed_dapo_needs_no_answer_line() -> None:
    assert reward("boxed_dapo", r"so \boxed{7}", 7) == {"score": 1.0, "acc": True, "pred": "7"}


def response_length(args: RolloutConfig, sample: Sample) -> float:
    return float(len(sample.response))


def test_a_reward_of_ones_own_can_be_boxed_and_an_unknown_one_cannot() -> None:
    assert reward(f"boxed_{HERE}:response_length", r"abc \boxed{de}", None) == 2.0
    with pytest.raises(PluginError, match="unknown reward 'maths'"):
        rewards.resolve("boxed_maths")


def test_a_boxed_reward_leaves_the_sample_as_it_was() -> None:
    sample = Sample(response=r"abc \boxed{2}", label="2")
    assert asyncio.run(async_rm(config("boxed_math"), sample)) == 1.0
    assert sample.response == r"abc \boxed{2}"
