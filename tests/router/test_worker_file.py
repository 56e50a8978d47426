"""Workers from a file: what is read, and what becomes of the fleet when it changes."""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from espalier.cli import main
from espalier.errors import ConfigError
from espalier.router.worker_file import MAX_FILE_BYTES, WorkerFile, read_worker_urls
from espalier.router.workers import WorkerPool
from tests.router.running import router, run, until

A, B, C, D = (f"http://127.0.0.1:{port}" for port in (1, 2, 3, 4))


def replace(path: Path, content: str) -> None:
    """Put new content in the place of a file at once, as a careful writer does."""
    fresh = path.with_suffix(".new")
    fresh.write_text(content)
    fresh.replace(path)


def urls(pool: WorkerPool) -> list[str]:
    return [worker.url for worker in pool]


@contextlib.asynccontextmanager
async def following(pool: WorkerPool, path: Path) -> AsyncIterator[None]:
    """Load a file and follow it while the block lasts."""
    file = WorkerFile(pool, path, poll_interval_s=0.01)
    file.load()
    task = asyncio.create_task(file.run())
    yield
    assert not task.done()
    task.cancel()
    await asyncio.wait([task])


async def until_urls_are(pool: WorkerPool, *expected: str) -> None:
    await asyncio.to_thread(until, lambda: urls(pool) == list(expected))


def test_lines_are_urls_but_for_comments_and_blanks(tmp_path: Path) -> None:
    path = tmp_path / "workers"
    path.write_text(f"# the fleet\n\n{A}\r\n  {B}/  # spare\n{A}\n")
    assert read_worker_urls(path) == (A, f"{B}/")


def test_file_named_json_is_a_list(tmp_path: Path) -> None:
    path = tmp_path / "workers.json"
    path.write_text(f'["{A}", "{B}"]')
    assert read_worker_urls(path) == (A, B)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("w", b"http://h:1\n\nh:2 # x\n", "line 3: The worker URL 'h:2' is not valid"),
        ("w", b"http://h:1 http://h:2", "line 1: The worker URL 'http://h:1 http://h:2' is not valid"),
        ("w", b"\xff", "it is not UTF-8"),
        ("w", b"#" * (MAX_FILE_BYTES + 1), f"it is longer than {MAX_FILE_BYTES} bytes"),
        ("w.json", b'["http://h:1", "h:2"]', "entry 2: The worker URL 'h:2' is not valid"),
        ("w.json", b'{"url": "http://h:1"}', "expected a JSON list of URLs"),
        ("w.json", b"[1]", "expected a JSON list of URLs"),
        ("w.json", b"[", "expected a JSON list of URLs"),
        ("w.json", b"[" * 100_000, "expected a JSON list of URLs"),
    ],
)
def test_file_that_is_not_valid_is_told_with_the_place(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError) as told:
        read_worker_urls(path)
    assert f"--worker-file {path}: {reason}" in str(told.value)


def test_file_without_an_end_is_not_read_to_it() -> None:
    with pytest.raises(ConfigError, match="/dev/zero: it is longer than"):
        read_worker_urls(Path("/dev/zero"))


@pytest.mark.parametrize("name", ["missing", "."])
def test_file_that_cannot_be_read_ends_the_command_with_2(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["router", "--middleware", "none", "--worker-file", str(tmp_path / name)]) == 2
    assert f"--worker-file {tmp_path / name}: " in capsys.readouterr().err


def test_bad_line_ends_the_command_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "workers"
    path.write_text(f"{A}\nnowhere\n")
    assert main(["router", "--middleware", "none", "--worker-file", str(path)]) == 2
    assert f"{path}: line 2: The worker URL 'nowhere' is not valid" in capsys.readouterr().err


def test_router_begins_with_the_workers_of_the_file_and_follows_it(tmp_path: Path) -> None:
    path = tmp_path / "workers"
    path.write_text(A)
    with router(B, worker_file=path) as client:
        assert client.get("/list_workers").json() == {"urls": [B, A]}
        replace(path, C)
        until(lambda: client.get("/list_workers").json() == {"urls": [B, C]})


def test_workers_come_and_go_with_their_lines_and_no_others_do(tmp_path: Path) -> None:
    path = tmp_path / "workers"
    path.write_text(f"{A}\n{B}")
    pool = WorkerPool()
    pool.add(A)
    pool.add(D)

    async def test() -> None:
        async with following(pool, path):
            assert urls(pool) == [A, D, B]
            replace(path, f"{C}\n{D}")
            await until_urls_are(pool, A, D, C)
            replace(path, "")
            await until_urls_are(pool, A, D)

    run(test())


def test_worker_that_was_removed_otherwise_stays_so_until_its_line_comes_anew(tmp_path: Path) -> None:
    path = tmp_path / "workers"
    path.write_text(f"{A}\n{B}")
    pool = WorkerPool()

    async def test() -> None:
        async with following(pool, path):
            pool.remove(A)
            replace(path, f"{A}\n{B}\n{C}")
            await until_urls_are(pool, B, C)
            back, _ = pool.add(A)
            replace(path, C)
            await until_urls_are(pool, C, A)
            assert pool.find(A) is back
            pool.remove(A)
            replace(path, f"{A}\n{C}")
            await until_urls_are(pool, C, A)

    run(test())


def test_file_that_breaks_or_vanishes_changes_nothing_and_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "workers"
    path.write_text(A)
    pool = WorkerPool()

    def complaints() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]

    async def test() -> None:
        async with following(pool, path):
            replace(path, f"{B}\nnowhere")
            await asyncio.to_thread(until, lambda: len(complaints()) == 1)
            await asyncio.sleep(0.1)  # some more looks at the same file
            path.unlink()
            await asyncio.to_thread(until, lambda: len(complaints()) == 2)
            assert urls(pool) == [A]
            replace(path, f"{A}\n{B}")
            await until_urls_are(pool, A, B)

    run(test())
    assert ["line 2" in complaints()[0], "No such file" in complaints()[1]] == [True, True]
    assert len(complaints()) == 2


def test_file_that_is_still_being_written_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "workers"
    path.write_text(f"{A}\n{B}")
    pool = WorkerPool()
    seen: set[int] = set()

    async def test() -> None:
        async with following(pool, path):
            for written in range(100):
                path.write_text(f"{A}\n")
                os.utime(path, ns=(written, written))
                await asyncio.sleep(0.002)  # a writer that writes more often than the file is looked at
                seen.add(len(pool))
            path.write_text(f"{A}\n{B}\n{C}")
            await until_urls_are(pool, A, B, C)

    run(test())
    assert seen == {2}
