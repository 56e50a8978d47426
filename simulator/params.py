"""The 28 sampling parameters, checked as SGLang checks them.

Two stages, two error shapes: a contract check of names and types (`ContractError`), then the ranges
(`ValueProblem`). `null` stands for the default. Source: captures err_* of SGLang 0.5.23.
"""

import math
import re
from collections.abc import Mapping
from enum import Enum
from typing import Any

import msgspec

GREEDY_BELOW = 1e-6
"""A lower temperature means greedy decoding."""

DEFAULT_MAX_NEW_TOKENS = 128
"""Tokens that a call gets that does not say how many."""

MAX_STOPS = 32
"""Stop strings that a call may have."""

FORCING_BIAS = 50.0
"""A logit bias from here on makes the token certain."""


class ContractError(ValueError):
    """A name or a type does not fit. Answered 400 with `{"error": "message"}`."""


class ValueProblem(ValueError):
    """A value cannot be served. Answered 400 with `{"error": {"message": …}}`, in a stream as an event."""


class Kind(Enum):
    """A JSON type, by what the contract's messages call it."""

    INTEGER = "i64"
    NUMBER = "f64"
    BOOLEAN = "a boolean"
    STRING = "a string"
    STRINGS = "a value or an array of values for StringOrList"
    INTEGERS = "a sequence"
    MAP = "a map"
    ANY = "any value"
    BOOLEANS = "a value or an array of values for BoolOrList"
    INTEGERS_OR_ONE = "a value or an array of values for IntOrList"
    TOKEN_IDS = "a value or an array of values for TokenIdsOrList"  # noqa: S105  no password
    ARRAY = "an array"


SAMPLING_FIELDS: Mapping[str, Kind] = {
    "max_new_tokens": Kind.INTEGER,
    "stop": Kind.STRINGS,
    "stop_token_ids": Kind.INTEGERS,
    "stop_regex": Kind.STRINGS,
    "temperature": Kind.NUMBER,
    "top_p": Kind.NUMBER,
    "top_k": Kind.INTEGER,
    "min_p": Kind.NUMBER,
    "frequency_penalty": Kind.NUMBER,
    "presence_penalty": Kind.NUMBER,
    "repetition_penalty": Kind.NUMBER,
    "min_new_tokens": Kind.INTEGER,
    "n": Kind.INTEGER,
    "json_schema": Kind.STRING,
    "regex": Kind.STRING,
    "ebnf": Kind.STRING,
    "structural_tag": Kind.STRING,
    "ignore_eos": Kind.BOOLEAN,
    "skip_special_tokens": Kind.BOOLEAN,
    "spaces_between_special_tokens": Kind.BOOLEAN,
    "no_stop_trim": Kind.BOOLEAN,
    "stream_interval": Kind.INTEGER,
    "logit_bias": Kind.MAP,
    "sampling_seed": Kind.INTEGER,
    "custom_params": Kind.ANY,
    "beam_width": Kind.INTEGER,
    "watermark": Kind.MAP,
    "choice": Kind.ARRAY,
}
"""Every sampling parameter, in the order in which the contract's message lists them."""

_WATERMARK_FIELDS = ("enabled", "key", "context_window")
_GRAMMARS = ("json_schema", "regex", "ebnf", "structural_tag")


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """What a generation depends on. The other parameters are checked and then play no part."""

    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    stop_patterns: tuple[re.Pattern[str], ...] = ()
    greedy: bool = False
    min_new_tokens: int = 0
    n: int = 1
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    no_stop_trim: bool = False
    stream_interval: int | None = None
    forced_id: int | None = None
    sampling_seed: int | None = None


def check_sampling_fields(given: Mapping[str, Any]) -> None:
    """Check names and types of sampling parameters.

    Raises: ContractError.
    """
    for name, value in given.items():
        kind = SAMPLING_FIELDS.get(name)
        if kind is None:
            expected = ", ".join(f"`{field}`" for field in SAMPLING_FIELDS)
            raise ContractError(f"unknown field `{name}`, expected one of {expected}")
        check_kind(value, kind)
    watermark = given.get("watermark")
    if watermark:
        for name in watermark:
            if name not in _WATERMARK_FIELDS:
                expected = ", ".join(f"`{field}`" for field in _WATERMARK_FIELDS)
                raise ContractError(f"unknown field `{name}`, expected one of {expected}")


def check_kind(value: object, kind: Kind) -> None:
    """Check a JSON value's type; null always fits.

    Raises: ContractError.
    """
    if value is not None and not _fits(value, kind):
        raise ContractError(f"invalid type: {_described(value)}, expected {kind.value}")


def sampling_params(given: Mapping[str, Any], *, vocabulary: int) -> SamplingParams:
    """Return the parameters of a generation, of fields that `check_sampling_fields` has passed.

    Raises: ValueProblem naming the parameter, its range and the value.
    """
    values = {name: value for name, value in given.items() if value is not None}
    _check_ranges(values)
    stop = _strings(values.get("stop"))
    if len(stop) > MAX_STOPS:
        raise ValueProblem(f"stop can have at most {MAX_STOPS} entries, got {len(stop)}.")
    if any(name in values for name in _GRAMMARS):
        raise ValueProblem(
            "Grammar-based generation (json_schema, regex, ebnf, structural_tag) is not supported when the "
            "server is launched with --grammar-backend none"
        )
    return SamplingParams(
        max_new_tokens=values.get("max_new_tokens"),
        stop=tuple(text for text in stop if text),
        stop_token_ids=frozenset(values.get("stop_token_ids", ())),
        stop_patterns=tuple(_pattern(text) for text in _strings(values.get("stop_regex"))),
        greedy=values.get("temperature", 1.0) < GREEDY_BELOW or values.get("top_k") == 1,
        min_new_tokens=values.get("min_new_tokens", 0),
        n=values.get("n", 1),
        ignore_eos=values.get("ignore_eos", False),
        skip_special_tokens=values.get("skip_special_tokens", True),
        no_stop_trim=values.get("no_stop_trim", False),
        stream_interval=values.get("stream_interval"),
        forced_id=_forced_id(values.get("logit_bias", {}), vocabulary),
        sampling_seed=values.get("sampling_seed"),
    )


def _check_ranges(values: Mapping[str, Any]) -> None:
    def check(name: str, holds: bool, rule: str) -> None:  # noqa: FBT001  the claim itself
        if not holds:
            raise ValueProblem(f"{name} must be {rule}, got {values[name]}.")

    maximum = values.get("max_new_tokens", DEFAULT_MAX_NEW_TOKENS)
    rules: dict[str, tuple[float, float, str]] = {
        "temperature": (0, math.inf, "a non-negative finite number"),
        "max_new_tokens": (0, math.inf, "at least 0"),
        "min_new_tokens": (0, maximum, f"in [0, max_new_tokens({maximum})]"),
        "min_p": (0, 1, "in [0, 1]"),
        "frequency_penalty": (-2, 2, "in [-2, 2]"),
        "presence_penalty": (-2, 2, "in [-2, 2]"),
        "n": (1, math.inf, "at least 1"),
        "stream_interval": (1, math.inf, "at least 1"),
    }
    for name, (least, most, rule) in rules.items():
        if name in values:
            check(name, least <= values[name] <= most, rule)
    if "top_p" in values:
        check("top_p", 0 < values["top_p"] <= 1, "in (0, 1]")
    if "top_k" in values:
        check("top_k", values["top_k"] == -1 or values["top_k"] >= 1, "-1 (off) or at least 1")
    if "repetition_penalty" in values:
        check("repetition_penalty", 0 < values["repetition_penalty"] <= 2, "in (0, 2]")


def _forced_id(logit_bias: Mapping[str, float], vocabulary: int) -> int | None:
    best: tuple[float, int] | None = None
    for key, bias in logit_bias.items():
        if not key.isdecimal() or int(key) >= vocabulary:
            raise ValueProblem(f"logit_bias must have keys in [0, {vocabulary - 1}], got {key}.")
        if isinstance(bias, bool) or not isinstance(bias, int | float):
            raise ValueProblem(f"logit_bias must have numbers as values, got {bias!r} for {key}.")
        if bias >= FORCING_BIAS and (best is None or bias > best[0]):
            best = (bias, int(key))
    return best[1] if best else None


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise ValueProblem(f"stop_regex {text!r} is not a regular expression: {error}.") from None


def _strings(value: str | list[str] | None) -> list[str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else value


def _fits(value: object, kind: Kind) -> bool:
    if kind is Kind.ANY:
        return True
    if kind in (Kind.INTEGER, Kind.NUMBER, Kind.BOOLEAN, Kind.STRING, Kind.MAP):
        return _is_scalar(value, kind)
    items = value if isinstance(value, list) else [value]
    if kind is Kind.STRINGS:
        return all(item is None or isinstance(item, str) for item in items)
    if kind is Kind.BOOLEANS:
        return all(item is None or isinstance(item, bool) for item in items)
    if kind is Kind.INTEGERS_OR_ONE:
        return all(item is None or _is_scalar(item, Kind.INTEGER) for item in items)
    if kind is Kind.INTEGERS:
        return isinstance(value, list) and all(_is_scalar(item, Kind.INTEGER) for item in items)
    return isinstance(value, list)


def _is_scalar(value: object, kind: Kind) -> bool:
    if kind is Kind.BOOLEAN:
        return isinstance(value, bool)
    if kind is Kind.STRING:
        return isinstance(value, str)
    if kind is Kind.MAP:
        return isinstance(value, dict)
    allowed = int if kind is Kind.INTEGER else (int, float)
    return isinstance(value, allowed) and not isinstance(value, bool)


def _described(value: object) -> str:
    if isinstance(value, bool):
        return f"boolean `{str(value).lower()}`"
    if isinstance(value, int):
        return f"integer `{value}`"
    if isinstance(value, float):
        return f"floating point `{value}`"
    if isinstance(value, str):
        return 'string "' + value.replace('"', '\\"') + '"'
    return "sequence" if isinstance(value, list) else "map"
