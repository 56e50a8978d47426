import shlex
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from .environment import EnvironmentFailed, engine_environment, prepare
from .stand_in import count_installs, write_scripts


def test_environment_is_made_once(tmp_path: Path) -> None:
    scripts = write_scripts(tmp_path / "scripts")
    first = prepare(tmp_path / "root", scripts)
    assert first.is_complete
    assert all(model.is_dir() for model in first.models)
    assert prepare(tmp_path / "root", scripts) == first
    assert count_installs(scripts) == 1


def test_two_makers_at_a_time_make_it_once(tmp_path: Path) -> None:
    scripts = write_scripts(tmp_path / "scripts")
    with ThreadPoolExecutor(4) as makers:
        made = list(makers.map(lambda _: prepare(tmp_path / "root", scripts), range(4)))
    assert all(environment.is_complete for environment in made)
    assert count_installs(scripts) == 1


def test_half_made_environment_is_made_anew(tmp_path: Path) -> None:
    scripts = write_scripts(tmp_path / "scripts")
    environment = engine_environment(tmp_path / "root", scripts)
    environment.venv.mkdir(parents=True)
    (environment.venv / "rubbish").touch()
    assert prepare(tmp_path / "root", scripts).is_complete
    assert not (environment.venv / "rubbish").exists()


def test_changed_script_makes_another_environment_and_removes_the_old_one(tmp_path: Path) -> None:
    scripts = write_scripts(tmp_path / "scripts")
    old = prepare(tmp_path / "root", scripts)
    (scripts / "make_model.py").write_text("# changed", encoding="utf-8")
    new = prepare(tmp_path / "root", scripts)
    assert new.folder != old.folder
    assert new.is_complete
    assert not old.folder.exists()


def test_failed_step_is_told_with_what_it_printed(tmp_path: Path) -> None:
    scripts = write_scripts(tmp_path / "scripts")
    (scripts / "broken").touch()
    with pytest.raises(EnvironmentFailed, match=r"(?s)could not install SGLang: .*no space left on device"):
        prepare(tmp_path / "root", scripts)
    assert not engine_environment(tmp_path / "root", scripts).is_complete


def test_command_survives_being_written_down_as_text(tmp_path: Path) -> None:
    environment = engine_environment(tmp_path / "a root", write_scripts(tmp_path / "scripts"))
    argv = environment.command(model=environment.models[0], port="{port}")
    assert shlex.split(shlex.join(argv)) == argv
    assert "PORT={port}" in argv
