import pytest

from espalier.simulator.arithmetic import read_problem


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("What is 17 * 24?", 408),
        ("What is 30 + 4 - 50?", -16),
        ("What is 12 * 3 + 7?", 43),
        ("Compute 2 + 3 * 4.", 14),
        ("Compute (2 + 3) * 4 - 1.", 19),
        ("What is 20 - 6 - 4?", 10),
        ("What is 84 / 7?", 12),
        ("What is 1,200 plus 3?", 1203),
        ("What is 6 x 7?", 42),
        ("What is 6 \u00d7 7 minus 2?", 40),
        ("Tom has 12 apples and buys 30 more. How many apples does he have?", 42),
        ("Anna had 50 stamps. She gives away 8 stamps and finds 3. How many are left?", 45),
        ("There are 7 bags with 12 marbles each. Mia loses 5 marbles. How many are left?", 79),
        ("Ben has 3 boxes. Each box holds 12 pens, and he sells 4 of them.", 32),
        ("Kate has 5 coins. She receives 2 bags with 10 coins each. How many coins?", 25),
    ],
)
def test_answer_is_read(prompt: str, answer: int) -> None:
    problem = read_problem(prompt)
    assert problem is not None
    assert problem.answer == answer


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "hello",
        "Tom has 12 apples.",
        "3 +",
        "(3 + 4",
        "3 + 4)",
        "5 / 0",
        "7 / 2",
        "12 3 + 4",
        "1" * 40 + " + 1",
    ],
)
def test_prompt_without_whole_arithmetic_has_none(prompt: str) -> None:
    assert read_problem(prompt) is None


def test_steps_are_in_the_order_of_the_operations() -> None:
    problem = read_problem("What is 5 * (3 + 4) - 2?")
    assert problem is not None
    assert [(step.operation, step.value) for step in problem.steps] == [
        ("3 + 4", 7),
        ("5 * 7", 35),
        ("35 - 2", 33),
    ]


def test_last_user_turn_counts() -> None:
    chat = (
        "<|im_start|>user\nWhat is 1 + 1?<|im_end|>\n<|im_start|>assistant\n1 + 1 = 2.<|im_end|>\n"
        "<|im_start|>user\nWhat is 2 + 3?<|im_end|>\n<|im_start|>assistant\n"
    )
    problem = read_problem(chat)
    assert problem is not None
    assert problem.answer == 5
