from pathlib import Path
from typing import Any

import pytest

from espalier.errors import ConfigError
from espalier.rollout import RolloutConfig
from espalier.settings import SettingsLoader, field_docstrings

LOADER = SettingsLoader(RolloutConfig, section="rollout", env_prefix="ESPALIER_ROLLOUT_")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "missing: --prompt-data"),
        ({"rollout_batch_size": "0"}, "--rollout-batch-size must be at least 1"),
        ({"over_sampling_batch_size": "8"}, "--over-sampling-batch-size 8 is below --rollout-batch-size 32"),
        ({"group_rm": True}, "--group-rm needs --custom-rm-path"),
        ({"router_url": "localhost:30000"}, "--router-url localhost:30000: expected http"),
        ({"rollout_stop_token_ids": ["2", "x"]}, "--rollout-stop-token-ids: expected token ids, not 'x'"),
        ({"rollout_temperature": "-1"}, "--rollout-temperature must be 0 or more"),
        ({"rollout_top_p": "0"}, "--rollout-top-p must be above 0"),
        ({"rollout_top_k": "0"}, "--rollout-top-k must be -1 or at least 1"),
        ({"request_timeout_s": "0"}, "--request-timeout-s must be a positive number of seconds"),
        ({"router_patience_s": "-5"}, "--router-patience-s must be a positive number of seconds"),
    ],
)
def test_a_wrong_setting_is_told_with_its_flag(flags: dict[str, Any], message: str) -> None:
    given = {"prompt_data": "x.jsonl"} | flags if flags else {}
    with pytest.raises(ConfigError) as caught:
        LOADER.load(given, {})
    assert message in str(caught.value)


def test_slimes_names_for_the_router_and_the_data() -> None:
    config = LOADER.load({"router_url": "http://10.0.0.1:3000"}, {"ESPALIER_ROLLOUT_PROMPT_DATA": "a.jsonl"})
    assert (config.sglang_router_ip, config.sglang_router_port) == ("10.0.0.1", 3000)
    assert config.data == config.prompt_data == Path("a.jsonl")
    assert config.groups_per_submission == config.rollout_batch_size


def test_every_setting_has_its_help() -> None:
    assert set(field_docstrings(RolloutConfig)) == set(RolloutConfig.__dataclass_fields__)
