"""The environment of the engine tests: SGLang on CPU and two tiny models, made once and kept in `.engine/`.

    python tests/engine/environment.py prepare    make it if need be; print where it is, as JSON
    python tests/engine/environment.py command    the same; print a command that starts a worker on {port}

Invariant: a folder that holds the file `complete` was made, to the end, from the files that its name is a
hash of. A lock keeps two makers apart; what an interrupted one leaves behind is made anew.
"""

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
DEFAULT_ROOT = HERE.parents[1] / ".engine"

MODEL_SEEDS = (0, 1)
"""Two models of different weights: one is the other's weight update."""

_SOURCES = ("install.sh", "requirements.txt", "constraints.txt", "make_model.py", "shim/**/*.py")
_LOG_TAIL_CHARS = 2000


class EnvironmentFailed(Exception):
    """The environment cannot be made; the message says which step failed and how."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineEnvironment:
    """Where everything is, or will be once made: in `folder`, by the scripts in `source`."""

    folder: Path
    source: Path = HERE

    @property
    def venv(self) -> Path:
        """The virtual environment that has SGLang."""
        return self.folder / "venv"

    @property
    def models(self) -> tuple[Path, ...]:
        """The model folders, in the order of `MODEL_SEEDS`."""
        return tuple(self.folder / f"model-{seed}" for seed in MODEL_SEEDS)

    @property
    def is_complete(self) -> bool:
        """Whether it was made to the end."""
        return self._marker.is_file()

    def command(self, *, model: Path, port: int | str) -> list[str]:
        """Return the argv that starts a worker serving `model` on `port` of 127.0.0.1."""
        variables = [f"VENV={self.venv}", f"MODEL={model}", f"PORT={port}"]
        return ["env", *variables, str(self.source / "launch.sh")]

    def make(self) -> None:
        """Make everything anew.

        Raises: EnvironmentFailed.
        """
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        _run("install SGLang", [str(self.source / "install.sh"), str(self.venv)])
        for seed, model in zip(MODEL_SEEDS, self.models, strict=True):
            script = str(self.source / "make_model.py")
            _run(f"make {model.name}", [str(self.venv / "bin/python"), script, str(model), str(seed)])
        self._marker.touch()

    @property
    def _marker(self) -> Path:
        return self.folder / "complete"


def engine_environment(root: Path, source: Path) -> EngineEnvironment:
    """Return the environment for the scripts in `source` and this Python, made or not."""
    digest = hashlib.sha256(f"{sys.version} {platform.machine()}".encode())
    for pattern in _SOURCES:
        for file in sorted(source.glob(pattern)):
            digest.update(f"\0{file.relative_to(source)}\0".encode() + file.read_bytes())
    return EngineEnvironment(folder=root / digest.hexdigest()[:16], source=source)


def prepare(root: Path = DEFAULT_ROOT, source: Path = HERE) -> EngineEnvironment:
    """Return the environment, made if need be: about 130 s, and 1.6 GB in `root`.

    Raises: EnvironmentFailed where a step fails, with the end of what it printed.
    """
    environment = engine_environment(root, source)
    if environment.is_complete:
        return environment
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root / "lock"):
        if not environment.is_complete:
            sys.stderr.write(f"making the SGLang environment in {root} (once, about 130 s)…\n")
            sys.stderr.flush()
            for outdated in root.iterdir():
                if outdated.is_dir():
                    shutil.rmtree(outdated, ignore_errors=True)
            environment.make()
    return environment


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path`; the system gives it back even if this process is killed."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(step: str, command: list[str]) -> None:
    variables = os.environ | {"PYTHON": sys.executable, "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if result.returncode != 0:
        raise EnvironmentFailed(
            f"could not {step}: {shlex.join(command)} ended with {result.returncode}:\n"
            f"{result.stdout[-_LOG_TAIL_CHARS:]}"
        )


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("prepare", "command"))
    what = parser.parse_args(argv).what
    try:
        environment = prepare()
    except EnvironmentFailed as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    if what == "command":
        answer = shlex.join(environment.command(model=environment.models[0], port="{port}"))
    else:
        found = {
            "python": str(environment.venv / "bin/python"),
            "models": [str(model) for model in environment.models],
            "pythonpath": str(HERE / "shim"),
        }
        answer = json.dumps(found)
    sys.stdout.write(f"{answer}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
