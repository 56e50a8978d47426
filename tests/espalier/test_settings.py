import argparse
import tomllib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espalier.effective import effective_toml
from espalier.errors import ConfigError
from espalier.settings import Loaded, SettingsLoader, field_docstrings


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
    token: tuple[str, ...] = field(default=(), metadata={"secret": True})


LOADER = SettingsLoader(Settings, section="thing", env_prefix="THING_", sections=["other"])


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
        (
            "[thing]\nprot = 1",
            r"unknown key 'prot' in \[thing\], did you mean port\?; known are folder, loud",
        ),
        ("[thing]\nport = 'x'", "port: expected a whole number, not 'x'"),
        ("[thing]\nport = true", "port: expected a whole number, not True"),
        ("[thing]\nport = 1.5", "port: expected a whole number, not 1.5"),
        ("[thing]\nratio = nan", "ratio: expected a finite number, not nan"),
        ("[thing]\nratio = -inf", "ratio: expected a finite number, not -inf"),
        ("[thing]\nurls = 'x'", "urls: expected a list, not 'x'"),
        ("[thing]\nmode = 'odd'", "mode: expected one of fast, slow, not 'odd'"),
        ("thing = 1", "'thing' must be a table"),
        ("[thin]\nport = 1", r"unknown table \[thin\], did you mean thing\?; known are \[other\], \[thing\]"),
        ("port = 1", r"the key 'port' stands outside of any table: put it under \[thing\]"),
        ("[thing]\nport = 1\n[[things]]", r"c\.toml: "),
        (
            "[thing]\ntoken = 'hush'",
            r"c\.toml: token: expected texts, and it is none \(a secret, so not shown\)",
        ),
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


@pytest.mark.parametrize(
    "variable",
    [
        *("THING_SERVICE_HOST", "THING_SERVICE_PORT", "THING_SERVICE_PORT_HTTP", "THING_PORT_30000_TCP"),
        *("THING_PORT_30000_TCP_PROTO", "THING_PORT_30000_TCP_PORT", "THING_PORT_30000_UDP_ADDR"),
        *("THING_METRICS_SERVICE_HOST", "THING_METRICS_PORT_9_TCP"),
    ],
)
def test_what_kubernetes_tells_of_a_service_of_our_name_is_no_setting(variable: str) -> None:
    assert load("--name", "n", **{variable: "10.0.0.1"}).port == 1


def test_port_that_kubernetes_sets_is_no_setting() -> None:
    assert load("--name", "n", THING_PORT="tcp://10.0.0.1:30000").port == 1
    assert load("--name", "n", THING_METRICS_PORT="tcp://10.0.0.1:30000").port == 1
    with pytest.raises(ConfigError, match="THING_PORT: expected a whole number"):
        load("--name", "n", THING_PORT="http://10.0.0.1:30000")


def test_variable_that_is_no_setting_is_told() -> None:
    with pytest.raises(ConfigError, match=r"THING_PROT: there is no such setting, did you mean THING_PORT\?"):
        load("--name", "n", THING_PROT="1")
    with pytest.raises(ConfigError, match="THING_XYZZY: there is no such setting; a variable is THING_ and"):
        load("--name", "n", THING_XYZZY="1")
    assert load("--name", "n", NOTHING_PORT="x").port == 1


def test_origin_of_each_setting_is_known(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text("[thing]\nratio = 1\n")
    loaded = LOADER.load_traced({"name": "n", "config": config}, {"THING_PORT": "8"})
    told = {name: loaded.origins[name] for name in ("name", "port", "ratio", "loud")}
    assert told == {
        "name": "flag",
        "port": "environment THING_PORT",
        "ratio": f"file {config}",
        "loud": "default",
    }


TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@given(TEXTS, st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.lists(TEXTS))
def test_effective_settings_read_back_as_they_are(
    name: str, port: int, ratio: float, urls: list[str]
) -> None:
    settings = Settings(name=name, port=port, ratio=ratio, loud=True, urls=tuple(urls), folder=Path("/a b"))
    loaded = Loaded(settings=settings, origins=dict.fromkeys(asdict(settings), "flag"))
    told = effective_toml(loaded, section="thing", groups={"first": ("ratio", "loud")})
    read = tomllib.loads(told)["thing"]
    assert Settings(**{**read, "urls": tuple(read["urls"]), "folder": Path(read["folder"])}) == settings


def test_effective_settings_tell_origins_groups_and_no_secret() -> None:
    settings = Settings(name="n", token=("hush",))
    origins = {**dict.fromkeys(asdict(settings), "default"), "token": "environment THING_TOKEN"}
    told = effective_toml(
        Loaded(settings=settings, origins=origins), section="thing", groups={"pace": ("ratio",)}
    )
    assert "hush" not in told
    lines = [" ".join(line.split()) for line in told.splitlines() if line]
    assert lines[:4] == ["[thing]", "# pace", "ratio = 0.5 # default", "# more"]
    assert "# folder is not set" in lines
    assert "# token is set and not shown # environment THING_TOKEN" in lines
