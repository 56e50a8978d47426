"""Instructions that a program can check, by the names that IFEval gave them: what the `ifeval` reward asks.

Each is a pure function of a response and the instruction's arguments, whose names and types are the
function's own. All take time in proportion to the response, whatever is in it: no pattern goes back over
what it has read, and no argument is ever a pattern.

Source: Zhou et al., "Instruction-Following Evaluation for Large Language Models" (2023). Their
`language:response_language` is left out: it needs a model of languages.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Final, TypeAlias, TypeVar, get_type_hints

import msgspec

from .prose import capital_words, divided, paragraphs, sentences, words

Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]
Phrase: TypeAlias = Annotated[str, msgspec.Meta(min_length=1)]
Phrases: TypeAlias = Annotated[list[Phrase], msgspec.Meta(min_length=1)]
Letter: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=1)]


class Relation(StrEnum):
    """How a count may lie to the one that is asked for."""

    AT_LEAST = "at least"
    LESS_THAN = "less than"

    def holds(self, count: int, asked: int) -> bool:
        """Return whether `count` lies so to `asked`."""
        return count >= asked if self is Relation.AT_LEAST else count < asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """One kind of instruction."""

    check: Callable[..., bool]
    """`f(text, **arguments)`: whether the text follows it"""

    arguments: type[msgspec.Struct]
    """what it must be told"""

    def is_followed(self, text: str, arguments: Mapping[str, object]) -> bool:
        """Return whether `text` follows it; nothing is followed by an empty one.

        Arguments that are None count as absent and those of other instructions are ignored: a table of
        instructions has a column for each.

        Raises: ValueError where an argument is missing or of the wrong kind.
        """
        given = {name: _whole(value) for name, value in arguments.items() if value is not None}
        try:
            known = msgspec.convert(given, self.arguments)
        except msgspec.ValidationError as error:
            raise ValueError(str(error)) from None
        return bool(text.strip()) and self.check(text, **msgspec.structs.asdict(known))


INSTRUCTIONS: Final[dict[str, Instruction]] = {}
"""Every instruction by its id."""

_CheckT = TypeVar("_CheckT", bound=Callable[..., bool])

_PLACEHOLDER: Final = re.compile(r"\[[^\[\]\n]*\]")
_TITLE: Final = re.compile(r"<<([^<>\n]+)>>")
_HIGHLIGHT: Final = re.compile(r"\*\*(?P<bold>[^*\n]*)\*\*|\*(?P<italic>[^*\n]+)\*")
_POSTSCRIPTS: Final = {
    "p.s.": re.compile(r"p\.\s?s\."),
    "p.p.s": re.compile(r"p\.\s?p\.\s?s"),
}
_FENCE: Final = "```"
_CONSTRAINED: Final = ("my answer is yes.", "my answer is no.", "my answer is maybe.")
_PARAGRAPHS_APART: Final = "***"
_RESPONSES_APART: Final = "******"


def _instruction(instruction_id: str) -> Callable[[_CheckT], _CheckT]:
    """Return a decorator that enters a check in the table; its keyword arguments are the instruction's."""

    def enter(check: _CheckT) -> _CheckT:
        assert instruction_id not in INSTRUCTIONS
        hints = get_type_hints(check, include_extras=True)
        fields = [
            (name, hints[name])
            for name, parameter in inspect.signature(check).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY
        ]
        arguments = msgspec.defstruct("Arguments", fields, frozen=True, kw_only=True)
        INSTRUCTIONS[instruction_id] = Instruction(check=check, arguments=arguments)
        return check

    return enter


@_instruction("keywords:existence")
def _has_keywords(text: str, *, keywords: Phrases) -> bool:
    folded = text.casefold()
    return all(keyword.casefold() in folded for keyword in keywords)


@_instruction("keywords:frequency")
def _repeats_keyword(text: str, *, keyword: Phrase, frequency: Count, relation: Relation) -> bool:
    return relation.holds(text.casefold().count(keyword.casefold()), frequency)


@_instruction("keywords:forbidden_words")
def _avoids_words(text: str, *, forbidden_words: Phrases) -> bool:
    return not any(
        re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) for word in forbidden_words
    )


@_instruction("keywords:letter_frequency")
def _repeats_letter(text: str, *, letter: Letter, let_frequency: Count, let_relation: Relation) -> bool:
    return let_relation.holds(text.lower().count(letter.lower()), let_frequency)


@_instruction("length_constraints:number_words")
def _counts_words(text: str, *, num_words: Count, relation: Relation) -> bool:
    return relation.holds(len(words(text)), num_words)


@_instruction("length_constraints:number_sentences")
def _counts_sentences(text: str, *, num_sentences: Count, relation: Relation) -> bool:
    return relation.holds(len(sentences(text)), num_sentences)


@_instruction("length_constraints:number_paragraphs")
def _counts_paragraphs(text: str, *, num_paragraphs: Count) -> bool:
    found = divided(text, _PARAGRAPHS_APART)
    return all(found) and len(found) == num_paragraphs


@_instruction("length_constraints:nth_paragraph_first_word")
def _begins_paragraph(
    text: str,
    *,
    num_paragraphs: Count,
    nth_paragraph: Annotated[int, msgspec.Meta(ge=1)],
    first_word: Phrase,
) -> bool:
    found = paragraphs(text)
    if len(found) != num_paragraphs or nth_paragraph > len(found):
        return False
    beginning = words(found[nth_paragraph - 1])[: len(words(first_word))]
    return [word.casefold() for word in beginning] == [word.casefold() for word in words(first_word)]


@_instruction("detectable_content:number_placeholders")
def _has_placeholders(text: str, *, num_placeholders: Count) -> bool:
    return len(_PLACEHOLDER.findall(text)) >= num_placeholders


@_instruction("detectable_content:postscript")
def _has_postscript(text: str, *, postscript_marker: Phrase) -> bool:
    marker, lowered = postscript_marker.strip().lower(), text.lower()
    pattern = _POSTSCRIPTS.get(marker)
    return pattern.search(lowered) is not None if pattern is not None else marker in lowered


@_instruction("detectable_format:number_bullet_lists")
def _counts_bullets(text: str, *, num_bullets: Count) -> bool:
    return sum(_is_bullet(line.strip()) for line in text.splitlines()) == num_bullets


@_instruction("detectable_format:number_highlighted_sections")
def _highlights(text: str, *, num_highlights: Count) -> bool:
    found = [match["bold"] or match["italic"] or "" for match in _HIGHLIGHT.finditer(text)]
    return sum(bool(part.strip()) for part in found) >= num_highlights


@_instruction("detectable_format:multiple_sections")
def _has_sections(text: str, *, section_spliter: Phrase, num_sections: Count) -> bool:
    beginning = re.compile(rf"{re.escape(section_spliter.strip())}\s?\d")
    return len(beginning.findall(text)) >= num_sections


@_instruction("detectable_format:constrained_response")
def _chooses_answer(text: str) -> bool:
    lowered = text.lower()
    return any(answer in lowered for answer in _CONSTRAINED)


@_instruction("detectable_format:json_format")
def _is_json(text: str) -> bool:
    bare = text.strip()
    if bare.startswith(_FENCE):
        bare = bare.removeprefix(_FENCE).removesuffix(_FENCE)
        language, _, rest = bare.partition("\n")
        bare = rest if language.strip().lower() in {"json", ""} else bare
    try:
        msgspec.json.decode(bare.strip())
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
        return False
    return True


@_instruction("detectable_format:title")
def _has_title(text: str) -> bool:
    return any(title.strip() for title in _TITLE.findall(text))


@_instruction("combination:two_responses")
def _responds_twice(text: str) -> bool:
    found = divided(text, _RESPONSES_APART)
    return len(found) == 2 and all(found) and found[0] != found[1]


@_instruction("combination:repeat_prompt")
def _repeats_prompt(text: str, *, prompt_to_repeat: Phrase) -> bool:
    return text.strip().casefold().startswith(prompt_to_repeat.strip().casefold())


@_instruction("startend:end_checker")
def _ends_with(text: str, *, end_phrase: Phrase) -> bool:
    return text.strip().strip('"').casefold().endswith(end_phrase.strip().casefold())


@_instruction("startend:quotation")
def _is_quoted(text: str) -> bool:
    bare = text.strip()
    return len(bare) > 1 and bare.startswith('"') and bare.endswith('"')


@_instruction("change_case:capital_word_frequency")
def _counts_capital_words(text: str, *, capital_frequency: Count, capital_relation: Relation) -> bool:
    return capital_relation.holds(len(capital_words(text)), capital_frequency)


@_instruction("change_case:english_capital")
def _is_in_capitals(text: str) -> bool:
    return text.isupper()


@_instruction("change_case:english_lowercase")
def _is_in_small_letters(text: str) -> bool:
    return text.islower()


@_instruction("punctuation:no_comma")
def _has_no_comma(text: str) -> bool:
    return "," not in text


def _is_bullet(line: str) -> bool:
    """Return whether a line without blanks around it is an entry of a list, and not a rule or bold text."""
    if line.startswith("-"):
        return bool(line.strip("- "))
    return line.startswith("*") and not line.startswith("**") and bool(line.strip("* "))


def _whole(value: object) -> object:
    """Return a whole number as int: columns with gaps are read as float."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
