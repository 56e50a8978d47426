import asyncio
import inspect
from collections.abc import Callable
from typing import Any

import pytest

from espalier import rollout
from espalier.errors import PluginError
from espalier.rollout import RolloutConfig, Sample, Status, generate_and_rm
from espalier.rollout.plugins import Plugins

HERE = __name__
MakeConfig = Callable[..., RolloutConfig]

FLAGS = {
    "rollout_function_path": "(args: .*, rollout_id: int, data_source: .*evaluation: bool)",
    "eval_function_path": "(args: .*, rollout_id: int, data_source: .*evaluation: bool)",
    "custom_generate_function_path": "(args: .*, sample: .*, sampling_params: .*)",
    "custom_rm_path": "(args: .*, sample: .*)",
    "dynamic_sampling_filter_path": "(args: .*, samples: .*)",
    "over_sampling_filter_path": "(args: .*, groups: .*)",
    "rollout_sample_filter_path": "(args: .*, samples: .*)",
    "rollout_all_samples_process_path": "(args: .*, all_samples: .*, data_source: .*)",
}


def takes_nothing() -> None: ...


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("form", [f"{HERE}:takes_nothing", f"{HERE}.takes_nothing"])
def test_a_wrong_signature_is_told_with_the_expected_one(
    make_config: MakeConfig, flag: str, form: str
) -> None:
    expected = FLAGS[flag].replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(
        PluginError, match=rf"{HERE}.takes_nothing' has the signature \(\).*expected {expected}"
    ):
        Plugins.resolve(make_config(**{flag: form}))


@pytest.mark.parametrize("flag", FLAGS)
def test_a_name_that_is_not_known_is_told_with_those_that_are(make_config: MakeConfig, flag: str) -> None:
    with pytest.raises(PluginError, match=r"unknown .* 'nobody': known are .*package\.module:attribute"):
        Plugins.resolve(make_config(**{flag: "nobody"}))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("generate_rollout", ["args", "rollout_id", "data_source", "evaluation"]),
        ("generate_rollout_async", ["args", "rollout_id", "data_source"]),
        ("generate", ["args", "sample", "sampling_params"]),
        ("generate_and_rm", ["args", "sample", "sampling_params", "evaluation"]),
        ("generate_and_rm_group", ["args", "group", "sampling_params", "evaluation"]),
        ("abort", ["args", "rollout_id"]),
        ("eval_rollout", ["args", "rollout_id"]),
        ("GenerateState", ["args"]),
    ],
)
def test_functions_have_slimes_names_and_parameters(name: str, parameters: list[str]) -> None:
    signature = inspect.signature(getattr(rollout, name))
    assert list(signature.parameters) == parameters
    assert all(p.kind is p.POSITIONAL_OR_KEYWORD for p in signature.parameters.values())


async def two_turns(args: RolloutConfig, sample: Sample, sampling_params: dict[str, Any]) -> list[Sample]:
    """Ask twice, with an observation between; return the first turn by itself and then both."""
    sample = await rollout.generate(args, sample, sampling_params)
    first = Sample.from_dict(sample.to_dict())
    sample.append_response_tokens(tokens=[501, 502], trainable=False, text=" so ")
    sample.status = Status.PENDING
    return [first, await rollout.generate(args, sample, sampling_params)]


def test_a_generate_function_may_take_turns_and_return_several_samples(make_config: MakeConfig) -> None:
    config = make_config(custom_generate_function_path=f"{HERE}:two_turns")
    sample = Sample(index=0, prompt="user question ?", label="4")
    result = asyncio.run(generate_and_rm(config, sample, config.sampling_params()))
    assert isinstance(result, list)
    first, both = result
    assert first.reward is not None
    assert both.reward is not None
    assert both.tokens[: len(first.tokens) + 2] == [*first.tokens, 501, 502]
    assert both.loss_mask is not None
    begun = first.response_length
    assert both.loss_mask[:begun] + both.loss_mask[begun + 2 :] == [1] * (both.response_length - 2)
    assert both.loss_mask[begun : begun + 2] == [0, 0]


def test_a_sample_may_name_its_own_generate_function(make_config: MakeConfig) -> None:
    config = make_config()
    sample = Sample(index=0, prompt="user question ?", label="4", generate_function_path=f"{HERE}:two_turns")
    assert isinstance(asyncio.run(generate_and_rm(config, sample, config.sampling_params())), list)
