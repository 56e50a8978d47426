import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS: dict[str, str] = PROJECT["tool"]["setuptools"]["package-dir"]
"""Import name -> the folder that holds it."""

LIST_MODULES_LOADED = """
import importlib, json, pkgutil, sys
for name in sys.argv[1:]:
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, f"{name}."):
        importlib.import_module(module.name)
print(json.dumps(sorted(sys.modules)))
"""

LIST_MODULES_LOADED_BY_HELP = """
import contextlib, io, json, sys
from espalier.cli import main
with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
    main([sys.argv[1], "--help"])
assert "--" in shown.getvalue()
print(json.dumps(sorted(sys.modules)))
"""

SERVER = {"fastapi", "starlette", "uvicorn"}


def run_python(code: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def modules_loaded(code: str, *arguments: str) -> set[str]:
    result = run_python(code, *arguments)
    assert result.returncode == 0, result.stderr
    loaded: list[str] = json.loads(result.stdout)
    return set(loaded)


def package_files(import_name: str) -> set[str]:
    """Every file of the package, as the wheel should name it."""
    folder = ROOT / FOLDERS[import_name]
    found: set[str] = set()
    for where, _, names in os.walk(folder):  # does not enter the links under espalier/
        if Path(where).name != "__pycache__":
            inside = Path(where).relative_to(folder)
            found |= {str(Path(*import_name.split(".")) / inside / name) for name in names}
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a copy: a build leaves folders behind that a later build would pick up."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for folder in FOLDERS.values():
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, source / folder, symlinks=True, ignore=ignore)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(built), "."], cwd=source, check=True)
    return zipfile.ZipFile(next(built.glob("*.whl")))


def test_wheel_holds_exactly_the_files_of_the_packages(wheel: zipfile.ZipFile) -> None:
    expected = set().union(*(package_files(name) for name in FOLDERS))
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == expected


def test_wheel_installs_the_command_and_the_licence(wheel: zipfile.ZipFile) -> None:
    metadata = {Path(name).name: name for name in wheel.namelist() if ".dist-info/" in name}
    assert "espalier = espalier.cli:main" in wheel.read(metadata["entry_points.txt"]).decode()
    assert wheel.read(metadata["LICENSE"]) == (ROOT / "LICENSE").read_bytes()


def test_links_show_type_checkers_the_folders_that_the_wheel_maps() -> None:
    links = {path.name: path.resolve() for path in (ROOT / "espalier").iterdir() if path.is_symlink()}
    mapped = {name.rpartition(".")[2]: ROOT / folder for name, folder in FOLDERS.items() if "." in name}
    assert links == {name: folder for name, folder in mapped.items() if folder.parent == ROOT}


@pytest.mark.parametrize("import_name", sorted(name for name in FOLDERS if name.count(".") == 1))
def test_folder_cannot_be_imported_under_its_bare_name(import_name: str) -> None:
    folder = FOLDERS[import_name]
    result = run_python(f"import {folder}")
    assert result.returncode != 0
    assert f"ImportError: import {import_name}, not {folder}" in result.stderr


def test_rollout_loads_neither_the_server_nor_torch() -> None:
    loaded = modules_loaded(LIST_MODULES_LOADED, "espalier.rollout")
    assert not loaded & (SERVER | {"torch", "espalier.router", "espalier.middleware", "espalier.simulator"})


def test_router_does_not_load_torch() -> None:
    loaded = modules_loaded(LIST_MODULES_LOADED, "espalier.router", "espalier.middleware")
    assert not loaded & {"torch", "transformers", "espalier.rollout", "espalier.simulator"}


@pytest.mark.parametrize(
    ("command", "others"),
    [
        ("router", {"torch", "espalier.rollout", "espalier.simulator"}),
        ("rollout", {*SERVER, "torch", "espalier.router", "espalier.middleware", "espalier.simulator"}),
        ("worker", {"torch", "espalier.rollout", "espalier.router", "espalier.middleware"}),
    ],
)
def test_command_loads_only_its_own_part(command: str, others: set[str]) -> None:
    assert not modules_loaded(LIST_MODULES_LOADED_BY_HELP, command) & others


def test_constraints_pin_every_requirement_of_the_project() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {normal(line) for line in lines if not line.startswith("#")}
    project = PROJECT["project"]
    wanted = list(project["dependencies"])
    for extra in ("data", "images", "numpy", "router", "torch", "test"):
        wanted += project["optional-dependencies"][extra]
    assert {normal(each) for each in wanted} - pinned == {"espalier"}


def test_torch_is_constrained_alike_everywhere() -> None:
    files = ("constraints.txt", "tests/engine/constraints.txt", "tests/engine/requirements.txt")
    for name in files:
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        assert [line for line in lines if normal(line) == "torch"] == ["torch==2.13.0"], name


def normal(requirement: str) -> str:
    """The distribution's name, as pip compares names."""
    name = requirement
    for mark in "[<>=!~; ":
        name = name.partition(mark)[0]
    return name.lower().replace("_", "-")
