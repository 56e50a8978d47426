from typing import Any

import pytest

from espalier.simulator.params import (
    SAMPLING_FIELDS,
    ContractError,
    ValueProblem,
    check_sampling_fields,
    sampling_params,
)


def read(given: dict[str, Any]) -> Any:
    check_sampling_fields(given)
    return sampling_params(given, vocabulary=1500)


def test_there_are_28_parameters_and_null_is_the_default_of_each() -> None:
    assert len(SAMPLING_FIELDS) == 28
    assert read(dict.fromkeys(SAMPLING_FIELDS)) == read({})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seed": 1}, "unknown field `seed`, expected one of `max_new_tokens`, `stop`"),
        ({"max_tokens": 1}, "unknown field `max_tokens`"),
        ({"top_k": 5.0}, "invalid type: floating point `5.0`, expected i64"),
        ({"ignore_eos": 1}, "invalid type: integer `1`, expected a boolean"),
        ({"temperature": "1"}, 'invalid type: string "1", expected f64'),
        ({"max_new_tokens": True}, "invalid type: boolean `true`, expected i64"),
        ({"stop_token_ids": 3}, "invalid type: integer `3`"),
        ({"stop_token_ids": ["a"]}, "invalid type: sequence"),
        ({"stop": 3}, "invalid type: integer `3`"),
        ({"logit_bias": []}, "invalid type: sequence, expected a map"),
        ({"watermark": {"colour": 1}}, "unknown field `colour`, expected one of `enabled`"),
    ],
)
def test_name_or_type_that_does_not_fit_breaks_the_contract(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError) as raised:
        read(given)
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temperature": -1}, "temperature must be a non-negative finite number, got -1."),
        ({"max_new_tokens": -1}, "max_new_tokens must be at least 0, got -1."),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"min_p": -0.1}, "min_p"),
        ({"top_k": 0}, "top_k"),
        ({"frequency_penalty": 3}, "frequency_penalty"),
        ({"presence_penalty": -3}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"min_new_tokens": 200}, "min_new_tokens"),
        ({"n": 0}, "n must"),
        ({"stop": ["x"] * 33}, "stop can have at most 32"),
        ({"stop_regex": "("}, "stop_regex"),
        ({"logit_bias": {"1500": 1}}, "logit_bias must have keys in [0, 1499]"),
        ({"logit_bias": {"1": "much"}}, "logit_bias must have numbers"),
        ({"regex": "[0-9]+"}, "Grammar-based generation"),
    ],
)
def test_value_out_of_range_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueProblem) as raised:
        read(given)
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize("given", [{"temperature": 0}, {"temperature": 1e-7}, {"top_k": 1}])
def test_greedy_sampling_is_recognised(given: dict[str, Any]) -> None:
    assert read(given).greedy
