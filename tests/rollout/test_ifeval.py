import asyncio
from pathlib import Path
from typing import Any

import pytest

from espalier.errors import RolloutError
from espalier.rollout import RolloutConfig, Sample
from espalier.rollout.rewards import async_rm
from espalier.rollout.rewards.instructions import CHECKS


def graded(response: str, *instructions: tuple[str, dict[str, Any]], name: str = "ifeval") -> Any:
    metadata = {
        "instruction_id_list": [each for each, _ in instructions],
        "kwargs": [options for _, options in instructions],
    }
    args = RolloutConfig(prompt_data=Path("unused"), rm_type=name)
    return asyncio.run(async_rm(args, Sample(response=response, metadata=metadata)))


AT_LEAST, LESS = {"relation": "at least"}, {"relation": "less than"}
CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("keywords:existence", {"keywords": ["Sun", "moon"]}, "The moon and the sun.", "The moon."),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "A category.", "A Cat."),
    ("keywords:frequency", {"keyword": "go", "frequency": 2, **AT_LEAST}, "Go, go!", "Go!"),
    ("keywords:frequency", {"keyword": "go", "frequency": 2.0, **LESS}, "Go!", "Go, go!"),
    (
        "keywords:letter_frequency",
        {"letter": "e", "let_frequency": 3, "let_relation": "at least"},
        "Eel else",
        "all",
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, **AT_LEAST},
        'It is 3.5 m. "Is it?" Yes',
        "It is 3.5 m.",
    ),
    ("length_constraints:number_words", {"num_words": 3, **LESS}, "don't stop", "do not stop"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "one\n***\ntwo\n***", "one\n\ntwo"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
        "One.\n\nThen two.",
        "Then one.\n\nTwo.",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name], [city]", "[name]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\nP.S. Call me", "Bye. Call me"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Bye.\np. p. s. x", "Bye.\nP.S. x"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b", "* a\n** b **"),
    ("detectable_format:constrained_response", {}, "Well. My answer is no.", "No."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and **b**", "*a* and b"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "PART", "num_sections": 2},
        "PART 1\nx\nPART 2\ny",
        "PART 1\nx",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{'a': 1}"),
    ("detectable_format:title", {}, "<<Night>>\nIt was.", "<< >>\nIt was."),
    ("combination:two_responses", {}, "one\n******\ntwo", "one\n******\none"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it."}, "say it. It.", "It. Say it."),
    ("startend:end_checker", {"end_phrase": "That is all."}, 'Hm. "that is all."', "That is all. Hm"),
    ("startend:quotation", {}, ' "yes" ', '"'),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        "VERY GOOD",
        "VERY Good",
    ),
    ("change_case:english_capital", {}, "YES, 2!", "Yes"),
    ("change_case:english_lowercase", {}, "yes, 2!", "Yes"),
    ("punctuation:no_comma", {}, "a b", "a, b"),
]


@pytest.mark.parametrize(("name", "options", "good", "bad"), CASES)
def test_an_instruction_is_followed_or_not(name: str, options: dict[str, Any], good: str, bad: str) -> None:
    assert graded(good, (name, {**options, "unused": None})) == 1.0
    assert graded(bad, (name, options)) == 0.0


def test_every_instruction_has_a_case() -> None:
    assert {name for name, *_ in CASES} == set(CHECKS)


def test_all_instructions_count_and_an_empty_response_follows_none() -> None:
    both: list[tuple[str, dict[str, Any]]] = [
        ("punctuation:no_comma", {}),
        ("change_case:english_lowercase", {}),
    ]
    assert graded("yes", *both) == 1.0
    assert graded("Yes", *both) == 0.0
    assert graded(" \n", both[0]) == 0.0
    assert graded(" \n", both[0], name="ifeval_loose") == 0.0


def test_a_loose_reading_leaves_out_first_and_last_lines_and_emphasis() -> None:
    response = 'Sure, here it is:\n"go on"\nHope it helps, bye!'
    assert graded(response, ("startend:quotation", {})) == 0.0
    assert graded(response, ("startend:quotation", {}), name="ifeval_loose") == 1.0
    ending = ("startend:end_checker", {"end_phrase": "the end."})
    assert graded("**The end.**", ending) == 0.0
    assert graded("**The end.**", ending, name="ifeval_loose") == 1.0


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "needs 'instruction_id_list' in the metadata"),
        ({"instruction_id_list": ["language:response_language"]}, "no instruction 'language:response_lang"),
        ({"instruction_id_list": ["detectable_format:title"], "kwargs": []}, "needs 'kwargs' .*, 1 objects"),
        (
            {"instruction_id_list": ["keywords:existence"], "kwargs": [{"keywords": None}]},
            "keywords:existence: 'keywords' must be a list of texts, not None",
        ),
        (
            {"instruction_id_list": ["length_constraints:number_words"], "kwargs": [{"relation": "about"}]},
            "'relation' must be 'at least' or 'less than', not 'about'",
        ),
        (
            {
                "instruction_id_list": ["detectable_format:number_bullet_lists"],
                "kwargs": [{"num_bullets": 1.5}],
            },
            "'num_bullets' must be a whole number, not 1.5",
        ),
    ],
)
def test_wrong_metadata_fails_the_sample(metadata: dict[str, Any], message: str) -> None:
    args = RolloutConfig(prompt_data=Path("unused"), rm_type="ifeval")
    with pytest.raises(RolloutError, match=message):
        asyncio.run(async_rm(args, Sample(response="x", metadata=metadata)))
