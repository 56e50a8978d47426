import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from espalier.processes import ChildDied, Children
from tests.router.scripted import answering, reply, scripted_worker


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


FOREVER = python("import signal; signal.pause()")


def test_ready_child_is_waited_for_and_stopped_at_the_end(tmp_path: Path) -> None:
    with scripted_worker(answering(reply())) as url, Children() as children:
        child = children.start("a child", FOREVER, tmp_path / "log", os.environ)
        child.wait_ready(url, timeout_s=10)
    with pytest.raises(ChildDied, match="a child was killed by SIGTERM"):
        child.check()


def test_child_that_dies_while_starting_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    with Children() as children:
        child = children.start(
            "a child", python("print('out of luck'); exit(3)"), tmp_path / "log", os.environ
        )
        with pytest.raises(ChildDied, match=r"(?s)a child ended with status 3; .*out of luck"):
            child.wait_ready("http://127.0.0.1:1/", timeout_s=20)


def test_child_that_is_never_ready_is_given_up(tmp_path: Path) -> None:
    with (
        scripted_worker(answering(reply(status="503 Starting"))) as url,
        Children() as children,
    ):
        child = children.start("a child", FOREVER, tmp_path / "log", os.environ)
        with pytest.raises(ChildDied, match=r"a child was not ready after 0\.2 s"):
            child.wait_ready(url, timeout_s=0.2)


def test_program_that_does_not_exist_is_told(tmp_path: Path) -> None:
    with Children() as children, pytest.raises(ChildDied, match=r"a child cannot be started: .*nowhere"):
        children.start("a child", ["/nowhere/program"], tmp_path / "log", os.environ)


def test_death_of_a_watched_child_is_told_once(tmp_path: Path) -> None:
    told = threading.Event()
    with Children() as children:
        children.start("a child", python("pass"), tmp_path / "log", os.environ)
        children.watch(told.set, interval_s=0.01)
        assert told.wait(20)
        assert "a child ended with status 0" in str(children.death)


def test_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    stubborn = python(
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True)\n"
        "while True: signal.pause()"
    )
    log = tmp_path / "log"
    with Children(stop_grace_s=0.2) as children:
        child = children.start("a child", stubborn, log, os.environ)
        while "ready" not in log.read_text():
            child.check()
    with pytest.raises(ChildDied, match="killed by SIGKILL"):
        child.check()


def test_signals_do_not_cut_the_end_short(tmp_path: Path) -> None:
    slow = python(
        "import signal, sys, time\n"
        "def end(*_):\n"
        "    print('ending', flush=True); time.sleep(0.3); sys.exit()\n"
        "signal.signal(signal.SIGTERM, end); print('ready', flush=True)\n"
        "while True: signal.pause()"
    )
    log = tmp_path / "log"
    caught: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda number, _: caught.append(number)) for number in numbers}

    def interrupt() -> None:
        while "ending" not in log.read_text():
            child.check()
        for number in numbers:
            os.kill(os.getpid(), number)

    try:
        with Children() as children:
            child = children.start("a child", slow, log, os.environ)
            while "ready" not in log.read_text():
                child.check()
            interrupting = threading.Thread(target=interrupt)
            interrupting.start()
        interrupting.join()
        assert caught == []
        with pytest.raises(ChildDied, match="a child ended with status 0"):
            child.check()
        signal.raise_signal(signal.SIGINT)
        assert caught == [signal.SIGINT]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_interrupt_at_the_very_start_of_the_end_leaves_no_child_behind(tmp_path: Path) -> None:
    interrupted = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from espalier.processes import Children\n"
        "def interrupt(frame, event, _):\n"
        "    if event == 'call' and frame.f_code is Children.__exit__.__code__:\n"
        "        sys.setprofile(None)\n"
        "        raise KeyboardInterrupt\n"
        "forever = [sys.executable, '-c', 'import signal; signal.pause()']\n"
        "with Children() as children:\n"
        "    child = children.start('a child', forever, Path(sys.argv[1]), os.environ)\n"
        "    print(child._process.pid, flush=True)\n"
        "    sys.setprofile(interrupt)\n"
    )
    ended = subprocess.run(
        [*python(interrupted), str(tmp_path / "log")], capture_output=True, text=True, check=False, timeout=60
    )
    assert "KeyboardInterrupt" in ended.stderr
    with pytest.raises(ProcessLookupError):
        os.kill(int(ended.stdout), 0)
