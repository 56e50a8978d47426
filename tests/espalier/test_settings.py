import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from espalier.errors import ConfigError
from espalier.settings import SettingsLoader, field_docstrings


@dataclass(frozen=True, kw_only=True)
class Base:
    name: str
    """What it is called."""


@dataclass(frozen=True, kw_only=True)
class Settings(Base):
    """Settings to test with."""

    port: int = 1
    """Port, of 100 %
    certainty."""
    ratio: float = 0.5
    loud: bool = False
    mode: Literal["fast", "slow"] = "fast"
    urls: tuple[str, ...] = ()
    folder: Path | None = None


LOADER = SettingsLoader(Settings, section="thing", env_prefix="THING_")


def load(*flags: str, **environment: str) -> Settings:
    parser = argparse.ArgumentParser(exit_on_error=False)
    LOADER.add_flags(parser)
    return LOADER.load(vars(parser.parse_args(flags)), environment)


def test_every_kind_of_field_is_read_from_flags() -> None:
    assert load(
        *("--name", "n", "--port", "2", "--ratio", "3", "--loud", "--mode", "slow"),
        *("--urls", "a", "b", "--urls", "c", "--folder", "/tmp"),
    ) == Settings(
        name="n", port=2, ratio=3.0, loud=True, mode="slow", urls=("a", "b", "c"), folder=Path("/tmp")
    )


def test_every_kind_of_field_is_read_from_the_environment() -> None:
    assert load(
        THING_NAME="n", THING_PORT="2", THING_LOUD="yes", THING_MODE="slow", THING_URLS="a b", THING_FOLDER=""
    ) == Settings(name="n", port=2, loud=True, mode="slow", urls=("a", "b"))


def test_flags_win_over_environment_over_toml_over_defaults(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text('[thing]\nname = "toml"\nport = 7\nratio = 1\nurls = ["x"]\n[other]\nkey = 1\n')
    settings = load("--config", str(config), "--name", "flag", THING_PORT="8")
    assert settings == Settings(name="flag", port=8, ratio=1.0, urls=("x",))


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("[thing]\nprot = 1", r"unknown key 'prot' in \[thing\]; known are folder, loud"),
        ("[thing]\nport = 'x'", "port: expected a whole number, not 'x'"),
        ("[thing]\nport = true", "port: expected a whole number, not True"),
        ("[thing]\nport = 1.5", "port: expected a whole number, not 1.5"),
        ("[thing]\nratio = nan", "ratio: expected a finite number, not nan"),
        ("[thing]\nratio = -inf", "ratio: expected a finite number, not -inf"),
        ("[thing]\nurls = 'x'", "urls: expected a list, not 'x'"),
        ("[thing]\nmode = 'odd'", "mode: expected one of fast, slow, not 'odd'"),
        ("thing = 1", "'thing' must be a table"),
        ("[thing", "c.toml: "),
    ],
)
def test_toml_mistakes_are_told_with_their_place(tmp_path: Path, toml: str, message: str) -> None:
    config = tmp_path / "c.toml"
    config.write_text(toml)
    with pytest.raises(ConfigError, match=message):
        load("--config", str(config), "--name", "n")


def test_missing_config_file_is_told() -> None:
    with pytest.raises(ConfigError, match=r"--config nowhere\.toml: .*No such file"):
        load("--config", "nowhere.toml", "--name", "n")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"THING_PORT": "x"}, "THING_PORT: expected a whole number, not 'x'"),
        ({"THING_LOUD": "perhaps"}, "THING_LOUD: expected true or false, not 'perhaps'"),
        ({"THING_RATIO": "inf"}, "THING_RATIO: expected a finite number, not 'inf'"),
    ],
)
def test_environment_mistakes_are_told_with_the_variable(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load("--name", "n", **environment)


def test_flag_mistakes_are_told_with_the_flag() -> None:
    with pytest.raises(ConfigError, match="--port: expected a whole number, not 'x'"):
        load("--name", "n", "--port", "x")
    for value in ("nan", "inf", "-inf", "1e999"):
        with pytest.raises(ConfigError, match=f"--ratio: expected a finite number, not '{value}'"):
            load("--name", "n", f"--ratio={value}")


def test_missing_required_setting_is_told() -> None:
    with pytest.raises(ConfigError, match="missing: --name"):
        load()


def test_help_is_the_fields_docstring_and_default() -> None:
    parser = argparse.ArgumentParser()
    LOADER.add_flags(parser)
    assert "Port, of 100 % certainty. (default: 1)" in " ".join(parser.format_help().split())
    assert field_docstrings(Settings)["name"] == "What it is called."
