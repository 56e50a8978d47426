import itertools
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILES = ("Dockerfile", "Dockerfile.sglang")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker/compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PROFILES = ("simulated", "gpu")


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile: keyword and the rest, continued lines joined."""
    text = (ROOT / "docker" / dockerfile).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in joined.splitlines()]


def argument(dockerfile: str, keyword: str) -> str:
    return next(rest for name, rest in instructions(dockerfile) if name == keyword)


def copied(dockerfile: str) -> set[str]:
    """The sources of all COPY instructions."""
    return {
        source for name, rest in instructions(dockerfile) if name == "COPY" for source in rest.split()[:-1]
    }


def argv_of(service: dict[str, Any]) -> list[str]:
    """What a service runs: the image's entry point unless it names another, then its command."""
    dockerfile = Path(service["build"]["dockerfile"]).name
    entry_points = [yaml.safe_load(rest) for name, rest in instructions(dockerfile) if name == "ENTRYPOINT"]
    image_entry_point: list[str] = entry_points[0] if entry_points else []
    return [*service.get("entrypoint", image_entry_point), *service.get("command", [])]


def in_profile(profile: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The router and the workers of a profile."""
    services = [service for service in SERVICES.values() if profile in service["profiles"]]
    (router,) = (service for service in services if argv_of(service)[:2] == ["espalier", "router"])
    return router, [service for service in services if service is not router]


def flags(argv: list[str]) -> list[str]:
    return [word for word in argv if word.startswith("--")]


def value_of(argv: list[str], flag: str) -> str:
    return argv[argv.index(flag) + 1]


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_everything_copied_exists_and_is_sent_to_the_builder(dockerfile: str) -> None:
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for source in copied(dockerfile):
        assert (ROOT / source).exists(), source
        assert f"!{source}" in ignore


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_everything_that_the_package_is_built_from_is_copied(dockerfile: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = {Path(folder).parts[0] for folder in project["tool"]["setuptools"]["package-dir"].values()}
    assert folders | {"pyproject.toml", "README.md", "LICENSE", "constraints.txt"} == copied(dockerfile)


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_extras_installed_exist(dockerfile: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    named = re.findall(r"'\.\[(\w+)\]'", argument(dockerfile, "RUN"))
    assert named
    assert set(named) <= set(project["project"]["optional-dependencies"])


def test_router_image_runs_as_an_ordinary_user_and_checks_the_port_that_it_listens_on() -> None:
    assert argument("Dockerfile", "USER") == "espalier"
    argv: list[str] = yaml.safe_load(argument("Dockerfile", "ENTRYPOINT"))
    port = value_of(argv, "--port")
    assert argument("Dockerfile", "EXPOSE") == port
    assert f"http://127.0.0.1:{port}/health" in argument("Dockerfile", "HEALTHCHECK")


@pytest.mark.parametrize("command", ["router", "worker"])
def test_every_flag_given_to_espalier_exists(command: str) -> None:
    runs = [argv for argv in map(argv_of, SERVICES.values()) if argv[:2] == ["espalier", command]]
    assert runs
    shown = subprocess.run(
        [sys.executable, "-m", "espalier", command, "--help"], capture_output=True, text=True, check=True
    ).stdout
    known = set(re.findall(r"--[a-z][a-z-]*", shown))
    for argv in runs:
        assert set(flags(argv)) <= known


def test_compose_builds_from_existing_files() -> None:
    for name, service in SERVICES.items():
        context = (ROOT / "docker" / service["build"]["context"]).resolve()
        assert context == ROOT, name
        assert (context / service["build"]["dockerfile"]).is_file(), name


@pytest.mark.parametrize("profile", PROFILES)
def test_router_finds_two_workers_in_each_profile(profile: str) -> None:
    router, workers = in_profile(profile)
    argv = argv_of(router)
    urls = argv[argv.index("--worker-urls") + 1 :]
    listening = {
        f"http://{alias}:{value_of(argv_of(worker), '--port')}"
        for worker in workers
        for alias in worker["networks"]["default"]["aliases"]
    }
    assert len(urls) == 2
    assert listening == set(urls)


@pytest.mark.parametrize("profile", PROFILES)
def test_compose_publishes_the_port_that_the_router_listens_on(profile: str) -> None:
    router, _ = in_profile(profile)
    port = value_of(argv_of(router), "--port")
    assert router["ports"] == [f"{port}:{port}"]


def test_gpu_workers_run_sglang_and_share_the_model_with_the_router() -> None:
    router, workers = in_profile("gpu")
    for worker in workers:
        assert worker["build"]["dockerfile"] == "docker/Dockerfile.sglang"
        assert argv_of(worker)[:3] == ["python3", "-m", "sglang.launch_server"]
        assert worker["volumes"] == router["volumes"]
        folder = worker["volumes"][0].split(":")[-2]
        assert value_of(argv_of(worker), "--model-path").startswith(f"{folder}/")
    assert argument("Dockerfile.sglang", "FROM").startswith("lmsysorg/sglang:")


def test_comments_give_commands_that_name_existing_files() -> None:
    for path in (ROOT / "docker").iterdir():
        for line in path.read_text(encoding="utf-8").splitlines():
            words = shlex.split(line.lstrip("# ")) if "docker " in line and line.startswith("#") else []
            for flag, value in itertools.pairwise(words):
                if flag == "-f":
                    assert (ROOT / value).is_file(), f"{path.name}: {line}"
