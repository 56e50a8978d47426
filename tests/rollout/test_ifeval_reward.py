"""The reward `ifeval`: each instruction followed and not, and what is wrong with a row."""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from espalier.errors import RolloutError
from espalier.rollout import RolloutConfig, Sample
from espalier.rollout.rewards import async_rm
from espalier.rollout.rewards.instructions import INSTRUCTIONS


def reward(response: str, ids: Any, arguments: Any = None) -> Any:
    args = RolloutConfig(prompt_data=Path("unused"), rm_type="ifeval")
    metadata = {"instruction_id_list": ids, "kwargs": arguments}
    return asyncio.run(async_rm(args, Sample(response=response, metadata=metadata)))


CASES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    (
        "keywords:existence",
        {"keywords": ["C++", "tree"]},
        ["Trees in c++.", "c++ TREE"],
        ["Trees in C.", "C++"],
    ),
    (
        "keywords:frequency",
        {"keyword": "leaf", "frequency": 2, "relation": "at least"},
        ["Leaf by leaf.", "leaf leaf leaf"],
        ["One leaf."],
    ),
    (
        "keywords:frequency",
        {"keyword": "a.b", "frequency": 1, "relation": "less than"},
        ["none, and axb is none"],
        ["one a.b"],
    ),
    (
        "keywords:forbidden_words",
        {"forbidden_words": ["art", "no!"]},
        ["Start smart, no?"],
        ["Modern ART.", "oh no!"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "E", "let_frequency": 3, "let_relation": "at least"},
        ["three e", "EEe"],
        ["two: ee"],
    ),
    (
        "length_constraints:number_words",
        {"num_words": 3, "relation": "less than"},
        ["two words", "- one -"],
        ["these are three"],
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "at least"},
        [
            "One. Two.",
            'He said "go." She went!',
            "What?! Nothing",
            "一句。两句。",
            "Dr. Who came. Twice.",
            "Wait... Now.",
        ],
        ["Only e.g. one of 3.5 kg", "Mr. J. R. Smith met Dr. No.", "One... ..."],
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["One\n***\nTwo", "*** One *** Two ***"],
        ["One\n\nTwo", "One *** *** Two", "1 *** 2 *** 3"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "birch"},
        ['Oak.\n\n"Birch", then.', "Oak\n \n\nBIRCH"],
        ["Birch.\n\nOak.", "Oak.\nBirch.", "Oak.\n\nBirch.\n\nElm."],
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ["Dear [name], [[title]]!"],
        ["Dear [name]", "[a\nb] [c]"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ["Bye\nP.S. more", "bye p. s. more"],
        ["Bye", "PS more"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.P.S"},
        ["Bye\nP.P.S. more", "P. P. S more"],
        ["P.S. more"],
    ),
    ("detectable_content:postscript", {"postscript_marker": "NB:"}, ["x\nnb: y"], ["x"]),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* one\n* two", "List:\n  - one\n  - two\n\n---\n**bold**"],
        ["* one", "- 1\n- 2\n- 3", "*\n* "],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*one* and **two**", "*a**b*"],
        ["**one**", "** ** * *", "*a\nb* **c**"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Part", "num_sections": 2},
        ["Part 1\nx\nPart 2\ny", "Part1 Part2 Part3"],
        ["Part 1", "Part one, Part two"],
    ),
    (
        "detectable_format:constrained_response",
        {},
        ["My answer is maybe.", "Hm. My answer is no. Sorry."],
        ["My answer is perhaps.", "yes"],
    ),
    (
        "detectable_format:json_format",
        {},
        ['{"a": [1]}', '```json\n{"a": 1}\n```', "```\n[1]\n```", "```JSON\n{}```"],
        ["{a: 1}", 'Here: {"a": 1}', "[" * 100_000, "```json\n```", '{"a": "\ud800'],
    ),
    ("detectable_format:title", {}, ["<<Oak>>\nText"], ["<Oak>", "<< >>", "<<Oak\n>>"]),
    (
        "combination:two_responses",
        {},
        ["One ****** Two", "******\nOne\n******\nTwo"],
        ["One", "One ****** One", "1 ****** 2 ****** 3", "1 ****** ****** 2"],
    ),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Say (it)."},
        ["say (it). Done."],
        ["Done. Say (it)."],
    ),
    (
        "startend:end_checker",
        {"end_phrase": "The end."},
        ["So. the END.", '"So. The end."\n'],
        ["The end. Really.", "The end"],
    ),
    ("startend:quotation", {}, ['"Quoted"', ' "a" and "b" \n'], ['"', '"Quoted', "'Quoted'"]),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        ["SO much NOISE", "WELL-KNOWN I"],
        ["SO Much noise", "123 456"],
    ),
    ("change_case:english_capital", {}, ["ALL OF IT, 100 %."], ["ALMOST aLL", "1 2 3"]),
    ("change_case:english_lowercase", {}, ["all of it, 100 %."], ["Almost all", "1 2 3"]),
    ("punctuation:no_comma", {}, ["No pause here; none."], ["One, two"]),
]


@pytest.mark.parametrize(("name", "arguments", "followed", "broken"), CASES)
def test_an_instruction_is_followed_or_not(
    name: str, arguments: dict[str, Any], followed: list[str], broken: list[str]
) -> None:
    for text in followed:
        assert reward(text, [name], [arguments]) == 1.0, text
    for text in [*broken, "", " \n"]:
        assert reward(text, [name], [arguments]) == 0.0, text


def test_every_instruction_has_a_case() -> None:
    assert {name for name, *_ in CASES} == set(INSTRUCTIONS)


def test_all_instructions_must_be_followed() -> None:
    ids = ["punctuation:no_comma", "length_constraints:number_words"]
    arguments = [{}, {"num_words": 2, "relation": "at least"}]
    assert reward("two words", ids, arguments) == 1.0
    assert reward("two, words", ids, arguments) == 0.0
    assert reward("one", ids, arguments) == 0.0


def test_only_what_stands_behind_the_thoughts_counts() -> None:
    assert reward("<think>well, well</think>Done.", ["punctuation:no_comma"]) == 1.0
    assert reward("<think>well</think>Done, yes.", ["punctuation:no_comma"]) == 0.0


def test_arguments_may_come_from_a_table_with_a_column_for_each() -> None:
    row = {
        "num_words": 2.0,
        "relation": "at least",
        "keywords": None,
        "letter": "x",
        "capital_relation": None,
    }
    ids = ["length_constraints:number_words", "punctuation:no_comma"]
    assert reward("two words", ids, [row, None]) == 1.0
    assert reward("two words", ids, row) == 1.0
    assert reward("word", ids, row) == 0.0


@pytest.mark.parametrize(
    ("ids", "arguments", "message"),
    [
        (None, None, "needs 'instruction_id_list' in the metadata, a list of names, not None"),
        ([], [], "a list of names, not []"),
        ("punctuation:no_comma", None, "a list of names, not 'punctuation:no_comma'"),
        (
            ["punctuation:no_coma"],
            None,
            "'punctuation:no_coma', did you mean punctuation:no_comma?: known are",
        ),
        (["language:response_language"], None, "knows no instruction 'language:response_language'"),
        (["punctuation:no_comma"], [], "an object for each of the 1 instructions, not []"),
        (["punctuation:no_comma"], ["x"], "an object for each of the 1 instructions, not ['x']"),
        (["keywords:existence"], None, "cannot check 'keywords:existence': Object missing required"),
        (["keywords:existence"], [{"keywords": []}], "Expected `array` of length >= 1 - at `$.keywords`"),
        (
            ["keywords:existence"],
            [{"keywords": [""]}],
            "Expected `str` of length >= 1 - at `$.keywords[0]`",
        ),
        (
            ["keywords:frequency"],
            [{"keyword": "a", "frequency": 1, "relation": "around"}],
            "Invalid enum value 'around' - at `$.relation`",
        ),
        (
            ["length_constraints:number_words"],
            [{"num_words": 1.5, "relation": "at least"}],
            "`int`, got `float`",
        ),
    ],
)
def test_a_row_that_cannot_be_checked_fails_its_sample(ids: Any, arguments: Any, message: str) -> None:
    with pytest.raises(RolloutError, match=re.escape(message)) as told:
        reward("x, y", ids, arguments)
    assert "'ifeval'" in str(told.value)


@pytest.mark.parametrize("unit", [".", " ", "\n", "*", "[", "<", "<<a", "p. ", "a.", "a'", "{", "。", "-\n"])
def test_no_response_holds_up_the_others(unit: str) -> None:
    response = unit * (300_000 // len(unit)) + "x"
    for name, arguments, *_ in CASES:  # takes minutes where one goes back over what it has read
        assert reward(response, [name], [arguments]) in (0.0, 1.0)
