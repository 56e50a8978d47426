"""Scripts that stand in for the real ones: they make and start something small, in no time."""

from pathlib import Path

INSTALL = """#!/bin/sh
# Leaves a "python" that makes a model's folder, and counts its runs beside it.
set -eu
echo run >> "$(dirname "$0")/installs"
if [ -e "$(dirname "$0")/broken" ]; then echo "no space left on device"; exit 3; fi
mkdir -p "$1/bin"
printf '#!/bin/sh\\nmkdir "$2" && echo up > "$2/ready"\\n' > "$1/bin/python"
chmod +x "$1/bin/python"
"""

LAUNCH = """#!/bin/sh
# Serves the model's folder over HTTP, /ready included, and has a child of its own.
sleep 600 &
echo $! > "$MODEL/child"
exec python3 -m http.server --bind 127.0.0.1 --directory "$MODEL" "$PORT"
"""

LAUNCH_AND_DIE = """#!/bin/sh
echo "the model cannot be loaded" >&2
exit 4
"""


def write_scripts(folder: Path, *, launch: str = LAUNCH) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in {"install.sh": INSTALL, "launch.sh": launch, "make_model.py": ""}.items():
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod(0o755)
    return folder


def count_installs(folder: Path) -> int:
    return len((folder / "installs").read_text(encoding="utf-8").splitlines())
