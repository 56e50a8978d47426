"""Instructions whose following can be checked: a small pure function for each, by its id in IFEval.

Sentences end at `.`, `!` or `?`; words are runs of letters, digits, `'` and `-` between them. Both count a
little otherwise than IFEval's tokenizers at abbreviations.

Source: ids and options of "Instruction-Following Evaluation for Large Language Models" (Zhou et al., 2023).
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

AT_LEAST: Final = "at least"
LESS_THAN: Final = "less than"

_WORD: Final = re.compile(r"\w+(?:['\u2019-]\w+)*")
_SENTENCE_END: Final = re.compile(r"[.!?]+(?=\s|[\"'\u201d\u2019)\]]|$)")
_FENCE: Final = re.compile(r"```(?:json)?\n?|```", re.IGNORECASE)
_CHOICES: Final = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_RULE: Final = "***"
"""Between paragraphs that are counted."""

_RESPONSES_RULE: Final = "******"
"""Between two responses."""


class OptionProblem(ValueError):
    """An instruction lacks an option, or has one of another type or value. Names both."""


@dataclass(frozen=True, slots=True)
class Options:
    """What an instruction is given with: its `kwargs`. Options that are None are not there."""

    instruction: str
    values: Mapping[str, object]

    def text(self, name: str) -> str:
        """Return a text that is not empty."""
        value = self.values.get(name)
        if not isinstance(value, str) or not value:
            raise OptionProblem(f"{self.instruction}: {name!r} must be a text, not {value!r}")
        return value

    def texts(self, name: str) -> list[str]:
        """Return a list of texts."""
        value = self.values.get(name)
        if not isinstance(value, list) or not value or not all(isinstance(each, str) for each in value):
            raise OptionProblem(f"{self.instruction}: {name!r} must be a list of texts, not {value!r}")
        return value

    def number(self, name: str) -> int:
        """Return a whole number; Parquet files have them as floats where some rows lack them."""
        value = self.values.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
            raise OptionProblem(f"{self.instruction}: {name!r} must be a whole number, not {value!r}")
        return int(value)

    def holds(self, count: int, number: str, relation: str) -> bool:
        """Tell whether `count` is at least, or less than, the option `number`, as `relation` says."""
        found = self.values.get(relation)
        if found not in (AT_LEAST, LESS_THAN):
            raise OptionProblem(
                f"{self.instruction}: {relation!r} must be {AT_LEAST!r} or {LESS_THAN!r}, not {found!r}"
            )
        limit = self.number(number)
        return count >= limit if found == AT_LEAST else count < limit


Check: TypeAlias = Callable[[str, Options], bool]
"""`f(response, options)`: whether the response does as it was told."""


def _keywords_exist(response: str, options: Options) -> bool:
    return all(_occurrences(response, word) for word in options.texts("keywords"))


def _no_forbidden_words(response: str, options: Options) -> bool:
    return not any(
        re.search(rf"(?<!\w){re.escape(word)}(?!\w)", response, re.IGNORECASE)
        for word in options.texts("forbidden_words")
    )


def _keyword_frequency(response: str, options: Options) -> bool:
    return options.holds(_occurrences(response, options.text("keyword")), "frequency", "relation")


def _letter_frequency(response: str, options: Options) -> bool:
    count = response.lower().count(options.text("letter").lower())
    return options.holds(count, "let_frequency", "let_relation")


def _sentences(response: str, options: Options) -> bool:
    parts = _SENTENCE_END.split(response)
    count = sum(1 for part in parts if _WORD.search(part))
    return options.holds(count, "num_sentences", "relation")


def _words(response: str, options: Options) -> bool:
    return options.holds(len(_WORD.findall(response)), "num_words", "relation")


def _paragraphs(response: str, options: Options) -> bool:
    parts = [part.strip() for part in response.split(_RULE)]
    inner = parts[1 if not parts[0] else 0 : -1 if len(parts) > 1 and not parts[-1] else None]
    return all(inner) and len(inner) == options.number("num_paragraphs")


def _nth_paragraph_first_word(response: str, options: Options) -> bool:
    paragraphs = [part.strip() for part in re.split(r"\n\s*\n", response) if part.strip()]
    nth = options.number("nth_paragraph")
    if len(paragraphs) != options.number("num_paragraphs") or not 1 <= nth <= len(paragraphs):
        return False
    first = _WORD.search(paragraphs[nth - 1])
    return first is not None and first[0].lower() == options.text("first_word").lower()


def _placeholders(response: str, options: Options) -> bool:
    return len(re.findall(r"\[[^\[\]]+\]", response)) >= options.number("num_placeholders")


def _postscript(response: str, options: Options) -> bool:
    letters = re.sub(r"[\s.]", "", options.text("postscript_marker")).lower()
    spelled = r"\s*\.?\s*".join(map(re.escape, letters))
    return re.search(rf"^\s*{spelled}", response, re.IGNORECASE | re.MULTILINE) is not None


def _bullets(response: str, options: Options) -> bool:
    stars = re.findall(r"^[ \t]*\*(?!\*)", response, re.MULTILINE)
    dashes = re.findall(r"^[ \t]*-(?!-)", response, re.MULTILINE)
    return len(stars) + len(dashes) == options.number("num_bullets")


def _constrained(response: str, options: Options) -> bool:  # noqa: ARG001  a check's signature
    return any(choice in response for choice in _CHOICES)


def _highlights(response: str, options: Options) -> bool:
    marked = re.findall(r"\*\*([^*\n]+)\*\*|(?<!\*)\*([^*\n]+)\*(?!\*)", response)
    count = sum(1 for double, single in marked if (double or single).strip())
    return count >= options.number("num_highlights")


def _sections(response: str, options: Options) -> bool:
    marker = re.escape(options.text("section_spliter").strip())
    return len(re.findall(rf"\b{marker}\s+\d+", response)) >= options.number("num_sections")


def _json(response: str, options: Options) -> bool:  # noqa: ARG001
    try:
        json.loads(_FENCE.sub("", response).strip())
    except (ValueError, RecursionError):
        return False
    return True


def _title(response: str, options: Options) -> bool:  # noqa: ARG001
    return any(title.strip() for title in re.findall(r"<<([^<>\n]+)>>", response))


def _two_responses(response: str, options: Options) -> bool:  # noqa: ARG001
    parts = [part.strip() for part in response.split(_RESPONSES_RULE)]
    parts = [part for position, part in enumerate(parts) if part or 0 < position < len(parts) - 1]
    return len(parts) == 2 and all(parts) and parts[0] != parts[1]


def _repeats_prompt(response: str, options: Options) -> bool:
    return response.strip().lower().startswith(options.text("prompt_to_repeat").strip().lower())


def _ends_with(response: str, options: Options) -> bool:
    return response.strip().strip('"').lower().endswith(options.text("end_phrase").strip().lower())


def _quoted(response: str, options: Options) -> bool:  # noqa: ARG001
    text = response.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def _capital_words(response: str, options: Options) -> bool:
    count = sum(1 for word in _WORD.findall(response) if word.isupper())
    return options.holds(count, "capital_frequency", "capital_relation")


def _all_capital(response: str, options: Options) -> bool:  # noqa: ARG001
    return response.isupper()


def _all_lowercase(response: str, options: Options) -> bool:  # noqa: ARG001
    return response.islower()


def _no_comma(response: str, options: Options) -> bool:  # noqa: ARG001
    return "," not in response


CHECKS: Final[Mapping[str, Check]] = {
    "keywords:existence": _keywords_exist,
    "keywords:forbidden_words": _no_forbidden_words,
    "keywords:frequency": _keyword_frequency,
    "keywords:letter_frequency": _letter_frequency,
    "length_constraints:number_sentences": _sentences,
    "length_constraints:number_words": _words,
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:nth_paragraph_first_word": _nth_paragraph_first_word,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:constrained_response": _constrained,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _json,
    "detectable_format:title": _title,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeats_prompt,
    "startend:end_checker": _ends_with,
    "startend:quotation": _quoted,
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": _all_capital,
    "change_case:english_lowercase": _all_lowercase,
    "punctuation:no_comma": _no_comma,
}
"""IFEval's, without the one that tells languages apart."""


def follows_all(response: str, instructions: Sequence[tuple[Check, Options]]) -> bool:
    """Tell whether a response does all that it was told; an empty one does nothing.

    Raises: OptionProblem.
    """
    return bool(response.strip()) and all(check(response, options) for check, options in instructions)


def follows_each_loosely(response: str, instructions: Sequence[tuple[Check, Options]]) -> bool:
    """Tell whether for each instruction some reading of the response does as it was told.

    Readings leave out the first line, the last one or both (an introduction, a farewell), and emphasis.
    """
    lines = response.split("\n")
    readings = [response, *("\n".join(part) for part in (lines[1:], lines[:-1], lines[1:-1]))]
    readings = [reading.strip() for each in readings for reading in (each, each.replace("*", ""))]
    readings = [reading for reading in dict.fromkeys(readings) if reading]
    return bool(readings) and all(
        any(check(reading, options) for reading in readings) for check, options in instructions
    )


def _occurrences(response: str, keyword: str) -> int:
    return response.lower().count(keyword.lower())
