from collections.abc import Callable
from typing import Any

import pytest

from espalier.errors import PluginError
from espalier.rollout import RolloutConfig, RolloutDataSource, RolloutFnTrainOutput, Sample, generate_rollout
from tests.rollout.fake_router import FakeRouter

HERE = __name__
MakeConfig = Callable[..., RolloutConfig]
Groups = list[list[Sample]]


def rolled_out(config: RolloutConfig) -> RolloutFnTrainOutput:
    return generate_rollout(config, 0, RolloutDataSource(config))


def last_ones(args: RolloutConfig, groups: Groups) -> Groups:
    return sorted(groups, key=lambda group: -(group[0].index or 0))


def too_few(args: RolloutConfig, groups: Groups) -> Groups:
    return groups[:2]


def nothing(args: RolloutConfig, groups: Groups) -> Any:
    return None


def raising(args: RolloutConfig, groups: Groups) -> Groups:
    raise KeyError("acc")


async def never_awaited(args: RolloutConfig, groups: Groups) -> Groups:
    return groups


def no_data_source(args: RolloutConfig, all_samples: Groups) -> None: ...


def test_the_over_sampling_filter_chooses_the_batch(fake: FakeRouter, make_config: MakeConfig) -> None:
    output = rolled_out(
        make_config(over_sampling_filter_path=f"{HERE}:last_ones", over_sampling_batch_size=6)
    )
    assert [group[0].group_index for group in output.samples] == [3, 4, 5]
    assert output.metrics is not None
    assert output.metrics["rollout/groups_kept"] == 3
    assert len(fake.requests) == 6 * 4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("too_few", "left 2 of 6 groups; --rollout-batch-size needs 3"),
        ("nothing", "must return a list of groups that it got, not NoneType"),
        ("raising", "over-sampling filter 'raising' raised KeyError: 'acc'"),
        ("never_awaited", "write it without async"),
    ],
)
def test_an_over_sampling_filter_that_gives_no_batch_is_told(
    make_config: MakeConfig, name: str, message: str
) -> None:
    config = make_config(over_sampling_filter_path=f"{HERE}.{name}", over_sampling_batch_size=6)
    with pytest.raises(PluginError, match=message):
        rolled_out(config)


def remove_odd_ones(args: RolloutConfig, groups: Groups) -> None:
    for group in groups:
        for sample in group:
            sample.remove_sample = (sample.index or 0) % 2 == 1


def test_the_sample_filter_marks_samples_of_the_batch(make_config: MakeConfig) -> None:
    output = rolled_out(make_config(rollout_sample_filter_path=f"{HERE}:remove_odd_ones"))
    samples = [sample for group in output.samples for sample in group]
    assert [sample.remove_sample for sample in samples] == [False, True] * 6


seen: list[tuple[list[int | None], object]] = []


def look(args: RolloutConfig, all_samples: Groups, data_source: object) -> None:
    seen.append(([group[0].group_index for group in all_samples], data_source))


def drop_prompt_1(args: RolloutConfig, samples: list[Sample]) -> bool:
    return samples[0].group_index != 1


def test_the_all_samples_process_sees_dropped_groups_and_the_data_source(make_config: MakeConfig) -> None:
    seen.clear()
    config = make_config(
        rollout_all_samples_process_path=f"{HERE}.look",
        dynamic_sampling_filter_path=f"{HERE}.drop_prompt_1",
    )
    source = RolloutDataSource(config)
    generate_rollout(config, 0, source)
    [(groups, data_source)] = seen
    assert groups[:4] == [0, 1, 2, 3]
    assert data_source is source


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("over_sampling_filter_path", "groups"),
        ("rollout_sample_filter_path", "samples"),
        ("rollout_all_samples_process_path", "data_source"),
    ],
)
def test_a_wrong_signature_fails_at_the_start_with_the_expected_one(
    fake: FakeRouter, make_config: MakeConfig, flag: str, expected: str
) -> None:
    name = "no_data_source" if expected == "data_source" else "look"
    with pytest.raises(PluginError, match=rf"has the signature \(.*expected \(args.*{expected}"):
        rolled_out(make_config(**{flag: f"{HERE}:{name}"}))
    assert fake.requests == []
