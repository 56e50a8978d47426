import json
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event

from espalier.rollout import RolloutConfig
from espalier.rollout.command import run
from espalier.rollout.tensorboard import TensorBoardWriter


def events_of(folder: Path) -> Iterator[tuple[int, str, float]]:
    [path] = folder.iterdir()
    content, at = path.read_bytes(), 0
    while at < len(content):
        (size,) = struct.unpack_from("<Q", content, at)
        event = Event.FromString(content[at + 12 : at + 12 + size])
        at += 12 + size + 4
        for value in event.summary.value:
            yield event.step, value.tag, value.simple_value


def test_what_is_in_the_metrics_file_is_in_the_event_file(make_config: Callable[..., RolloutConfig]) -> None:
    config = make_config(num_rollout=2, use_tensorboard=True)
    assert run(config) == 0
    lines = [json.loads(line) for line in (config.output_dir / "metrics.jsonl").read_text().splitlines()]
    expected = {
        (line["rollout_id"], name): struct.unpack("<f", struct.pack("<f", value))[0]
        for line in lines
        for name, value in line.items()
        if name != "rollout_id" and value is not None
    }
    found = {(step, name): value for step, name, value in events_of(config.output_dir / "tensorboard")}
    assert found == expected
    assert {step for step, _ in found} == {0, 1}


def test_nothing_is_made_where_nothing_was_written(tmp_path: Path) -> None:
    with TensorBoardWriter(tmp_path / "events"):
        assert not (tmp_path / "events").exists()


def test_the_library_is_not_imported_unasked(make_config: Callable[..., RolloutConfig]) -> None:
    config = make_config()
    assert run(config) == 0
    assert not (config.output_dir / "tensorboard").exists()
    program = "import sys, espalier.rollout.command; sys.exit('tensorboardX' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


HIDDEN = """
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path

class Hides(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "tensorboardX":
            sys.meta_path[:] = []
        return None

from espalier.errors import ConfigError
from espalier.rollout.tensorboard import TensorBoardWriter

sys.meta_path.insert(0, Hides())
try:
    TensorBoardWriter(Path("x"))
except ConfigError as error:
    print(error)
"""


def test_a_missing_library_is_told_with_the_command_that_installs_it() -> None:
    done = subprocess.run([sys.executable, "-c", HIDDEN], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "--use-tensorboard needs tensorboardX: pip install 'espalier[tensorboard]'"
