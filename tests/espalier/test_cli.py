import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from espalier.cli import main
from espalier.version import __version__


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "espalier", *arguments], capture_output=True, text=True, check=False
    )


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
        (("router", "--prot", "1"), "unrecognized arguments: --prot"),
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
def test_mistakes_end_with_one_sentence_and_status_2(arguments: tuple[str, ...], message: str) -> None:
    ended = run(*arguments)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


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
