"""The benchmark's own Python environment, with the routers of others in it: made once, kept in `.bench/`.

*Invariant*: an environment with the file `installed.json` was made, as far as that went, for the text of
`benchmarks/requirements.txt` that its name is a hash of.
"""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import msgspec

REQUIREMENTS: Final = Path(__file__).resolve().parents[1] / "requirements.txt"
ROOT: Final = REQUIREMENTS.parents[1] / ".bench"


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """An interpreter, the versions that it has, and why it lacks the rest."""

    python: str
    versions: dict[str, str]
    missing: dict[str, str]


def prepare(root: Path = ROOT, requirements: Path = REQUIREMENTS) -> Environment:
    """Return the environment for `requirements`, made if need be: about 60 s and 400 MB in `root`."""
    text = requirements.read_text()
    folder = root / hashlib.sha256(f"{sys.version}\0{text}".encode()).hexdigest()[:16]
    marker = folder / "installed.json"
    if not marker.is_file():
        print(
            f"making the benchmark's environment in {root} (once, about 60 s)…", file=sys.stderr, flush=True
        )
        shutil.rmtree(root, ignore_errors=True)
        environment = _make(folder, [line for line in text.splitlines() if line and not line.startswith("#")])
        marker.write_bytes(msgspec.json.format(msgspec.json.encode(environment)))
    return msgspec.json.decode(marker.read_bytes(), type=Environment)


def _make(folder: Path, requirements: list[str]) -> Environment:
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin/python")
    versions: dict[str, str] = {}
    missing: dict[str, str] = {}
    for requirement in requirements:
        name, _, version = requirement.partition("==")
        install = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", requirement]
        done = subprocess.run(install, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            versions[name] = version
        else:
            missing[name] = next(
                (line for line in reversed(done.stderr.splitlines()) if line.startswith("ERROR")),
                f"pip ended with status {done.returncode}",
            )
    return Environment(python=python, versions=versions, missing=missing)
