import os
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from espalier.cli import main
from espalier.router.settings import RouterSettings
from espalier.router.unused_flags import UNUSED_FLAGS
from espalier.settings import SettingsLoader
from espalier.version import __version__


class Ended(NamedTuple):
    """How a command ended."""

    returncode: object
    stdout: str
    stderr: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Run a command line in this process: for what ends before it listens."""

    def command(*arguments: str) -> Ended:
        try:
            status: object = main(arguments)
        except SystemExit as exit_:
            status = exit_.code
        return Ended(status, *capsys.readouterr())

    return command


def run_process(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "espalier", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


Run = Callable[..., Ended]


def test_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"espalier {__version__}\n"


@pytest.mark.parametrize("command", ["router", "worker", "rollout", "demo"])
def test_every_command_has_help_with_an_explanation_for_every_flag(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    lines = text.split("settings:")[1].splitlines()
    flags = [number for number, line in enumerate(lines) if line.startswith("  --")]
    assert "==SUPPRESS==" not in text
    assert len(flags) > 5
    for number in flags:
        explained = len(lines[number].split("  ")) > 2 or lines[number + 1].startswith("      ")
        assert explained, lines[number]


def test_help_of_the_router_lists_the_policies(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["router", "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert "  round_robin         Strict rotation in the order that workers joined." in lines


def test_without_a_command_help_is_shown_and_the_status_is_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "espalier COMMAND --help" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("frobnicate",), "invalid choice: 'frobnicate'"),
        (("router", "--prot", "1"), "espalier router: unknown flag: --prot, did you mean --port?"),
        (("router", "--xyzzy"), "unknown flag: --xyzzy; espalier router --help lists them"),
        (("router", "--control-plane-api-keys", "a"), "unknown flag: --control-plane-api-keys"),
        (("router", "1.2.3.4"), "a value stands alone, without a flag before it"),
        (("router", "--prometheus-port", "70000"), "--prometheus-port 70000: expected 0 to 65535"),
        (("router", "--prometheus-duration-buckets", "2", "1"), "seconds above 0, in ascending order"),
        (
            ("router", "--prometheus-host", "203.0.113.1", "--prometheus-port", "1", "--port", "0"),
            "--prometheus-port choose",
        ),
        (("router", "--api-key-file", "/nowhere"), "--api-key-file /nowhere: No such file or directory"),
        (("router", "--tls-cert-path", "/nowhere"), "--tls-cert-path /nowhere: No such file or directory"),
        (("router", "--tls-key-path", "/nowhere"), "TLS needs a certificate too: --tls-cert-path"),
        (("router", "--port", "x"), "espalier router: --port: expected a whole number, not 'x'"),
        (("router", "--port", "70000"), "espalier router: --port 70000: expected 0 to 65535"),
        (("router", "--policy", "best"), "unknown policy 'best': known are "),
        (
            ("router", "--policy", "random", "--policy-arg", "sede=7"),
            "espalier router: the policy 'random' has no option 'sede': known are seed",
        ),
        (("router", "--middleware", "tree"), "unknown middleware 'tree': known are radix_tree"),
        (
            ("router", "--worker-urls", "10.0.0.1:1"),
            "--worker-urls: The worker URL '10.0.0.1:1' is not valid",
        ),
        (("router", "--host", "203.0.113.1"), "cannot listen on 203.0.113.1:30000"),
        (("router", "--tokenizer-path", "/nowhere"), "/nowhere"),
    ],
)
def test_mistakes_end_with_one_sentence_and_status_2(
    run: Run, arguments: tuple[str, ...], message: str
) -> None:
    ended = run(*arguments)
    assert ended.returncode == 2
    assert message in ended.stderr


def test_mistake_ends_the_process_without_a_traceback() -> None:
    ended = run_process("router", "--middleware", "tree")
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("espalier router: unknown middleware 'tree'")


UNREADY = """
from espalier.calls import MiddlewareBase
from espalier.errors import ConfigError

class Unready(MiddlewareBase):
    async def start(self, forward):
        raise ConfigError("the moon is not full")

    async def __call__(self, call, forward):
        return await forward(call)
"""


def test_plug_in_of_the_current_folder_is_found_and_its_refusal_to_start_is_told(tmp_path: Path) -> None:
    (tmp_path / "of_ones_own.py").write_text(UNREADY)
    command = Path(sysconfig.get_path("scripts")) / "espalier"
    ended = subprocess.run(
        [command, "router", "--host", "127.0.0.1", "--port", "0", "--middleware", "of_ones_own:Unready"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr == "espalier router: the moon is not full\n"
    assert "router_ready" not in ended.stdout


@pytest.mark.parametrize(
    "flags",
    [("--api-kye", "hush"), ("--api-kye=hush",), ("--api-key", "hu sh"), ("--worker-api-key", "hu sh")],
)
def test_key_is_not_told_in_a_mistake(run: Run, flags: tuple[str, ...]) -> None:
    ended = run("router", *flags)
    assert ended.returncode == 2
    assert flags[0].partition("=")[0] in ended.stderr
    assert "hush" not in ended.stderr + ended.stdout
    assert "hu sh" not in ended.stderr + ended.stdout


def test_flags_of_sglangs_router_that_do_nothing_here_are_taken_with_a_warning(run: Run) -> None:
    ended = run("router", "--dp-aware", "--log-dir", "/tmp/x", "--selector", "a=b", "c=d", "--dry-run")
    assert ended.returncode == 0
    assert ended.stderr.splitlines() == [
        "espalier router: --dp-aware is not used: a worker spreads calls over its data-parallel ranks itself",
        "espalier router: --log-dir is not used: logs go to stderr; send that to a file",
        "espalier router: --selector is not used: workers join by --worker-urls or POST /workers",
    ]


def test_dry_run_prints_the_effective_settings_and_where_they_come_from(tmp_path: Path) -> None:
    config, keys = tmp_path / "router.toml", tmp_path / "keys"
    config.write_text('[router]\npolicy = "round_robin"\nport = 1\n')
    keys.write_text("hush-file\n")
    flags = (
        "--config",
        str(config),
        "--api-key-file",
        str(keys),
        "--admin-api-key",
        "hush-flag",
        "--dry-run",
    )
    environment = {"ESPALIER_ROUTER_PORT": "7", "ESPALIER_ROUTER_WORKER_API_KEY": "hush-variable"}
    ended = run_process("router", *flags, **environment)
    assert ended.returncode == 0, ended.stderr
    assert "hush" not in ended.stdout + ended.stderr
    told = tomllib.loads(ended.stdout)["router"]
    assert (told["port"], told["policy"], told["host"]) == (7, "round_robin", "0.0.0.0")
    lines = [" ".join(line.split()) for line in ended.stdout.splitlines()]
    assert "port = 7 # environment ESPALIER_ROUTER_PORT" in lines
    assert f'policy = "round_robin" # file {config}' in lines
    assert 'host = "0.0.0.0" # default' in lines
    assert "# worker_api_key is set and not shown # environment ESPALIER_ROUTER_WORKER_API_KEY" in lines


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--worker-urls", "h:1"), "--worker-urls: The worker URL 'h:1' is not valid"),
        (("--middleware", "tree"), "unknown middleware 'tree'"),
        (("--tls-cert-path", "/nowhere"), "--tls-cert-path /nowhere: No such file"),
        (("--api-key-file", "/nowhere"), "--api-key-file /nowhere: No such file"),
        (("--tokenizer-path", "/nowhere"), "/nowhere"),
    ],
)
def test_dry_run_finds_what_a_start_would_stumble_over(
    run: Run, flags: tuple[str, ...], message: str
) -> None:
    ended = run("router", "--dry-run", *flags)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert ended.stdout == ""


def test_unused_flags_are_none_of_the_settings() -> None:
    loader = SettingsLoader(RouterSettings, section="router", env_prefix="ESPALIER_ROUTER_")
    assert set(UNUSED_FLAGS).isdisjoint(loader.flags)
    grouped = [name for names in loader.groups.values() for name in names]
    assert len(grouped) == len(set(grouped))
    assert {f"--{name.replace('_', '-')}" for name in grouped} <= set(loader.flags)
