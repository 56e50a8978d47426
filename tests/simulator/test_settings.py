import pytest

from espalier.errors import ConfigError
from espalier.settings import SettingsLoader, field_docstrings
from espalier.simulator.settings import WorkerSettings

LOADER = SettingsLoader(WorkerSettings, section="worker", env_prefix="ESPALIER_WORKER_")


def test_every_setting_has_its_help() -> None:
    assert set(field_docstrings(WorkerSettings)) == set(WorkerSettings.__dataclass_fields__)


def test_settings_come_from_flags_and_environment() -> None:
    settings = LOADER.load({"port": "0", "fault": "hang"}, {"ESPALIER_WORKER_ACCURACY": "0.5"})
    assert (settings.port, settings.fault, settings.accuracy) == (0, "hang", 0.5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("accuracy", "1.5"),
        ("slice_s", "0"),
        ("decode_step_s", "-1"),
        ("decode_step_s", "nan"),
        ("max_running_requests", "0"),
        ("max_queued_requests", "-1"),
        ("port", "70000"),
        ("fault", "explode"),
    ],
)
def test_impossible_value_names_the_flag(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')}"):
        LOADER.load({name: value}, {})
