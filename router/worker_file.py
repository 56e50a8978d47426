"""Workers from a file that is watched.

The file is looked at about once a second, and read when it has changed and then stayed the same for one more
look, so that a file that is being written is not taken for a fleet that shrinks. URLs that have appeared
since the last reading are added; of those that have vanished, the workers that this file brought are removed.
A file that cannot be read, or has a line that is no URL, changes nothing and is logged once for each change.
"""

import asyncio
import logging
from pathlib import Path
from typing import Final

import msgspec

from ..errors import BadRequest, ConfigError
from .origin import Origin
from .workers import Worker, WorkerPool

POLL_INTERVAL_S: Final = 1.0
"""Time between two looks at the file."""

MAX_FILE_BYTES: Final = 16 << 20
"""A longer file is no list of workers."""

_Stamp = tuple[int, int, int]

_log = logging.getLogger("espalier.router")


class WorkerFile:
    """Keeps the pool in step with a file of URLs."""

    def __init__(self, pool: WorkerPool, path: Path, *, poll_interval_s: float = POLL_INTERVAL_S) -> None:
        self._pool = pool
        self._path = path
        self._poll_interval_s = poll_interval_s
        self._urls: dict[str, None] = {}
        self._brought: dict[str, Worker] = {}
        self._read_stamp: _Stamp | None = None

    def load(self) -> None:
        """Read the file now.

        Raises: ConfigError naming the file, the line and what is wrong; then nothing has changed.
        """
        stamp = _stamp_of(self._path)
        urls = read_worker_urls(self._path)
        self._read_stamp = stamp
        self._apply(urls)

    async def run(self) -> None:
        """Follow the file until cancelled."""
        seen = self._read_stamp
        while True:
            await asyncio.sleep(self._poll_interval_s)
            before, seen = seen, await asyncio.to_thread(_stamp_of, self._path)
            if seen != before or seen == self._read_stamp:
                continue
            self._read_stamp = seen
            try:
                urls = await asyncio.to_thread(read_worker_urls, self._path)
            except ConfigError as error:
                _log.warning("event=worker_file_unusable reason=%r", str(error))
            else:
                self._apply(urls)

    def _apply(self, urls: tuple[str, ...]) -> None:
        before, self._urls = self._urls, dict.fromkeys(urls)
        for url in self._urls:
            if url not in before:
                worker, is_new = self._pool.add(url)
                if is_new:
                    self._brought[url] = worker
        for url in before:
            brought = None if url in self._urls else self._brought.pop(url, None)
            if brought is not None and not brought.health.is_draining:
                self._pool.remove(brought.id)


def read_worker_urls(path: Path) -> tuple[str, ...]:
    """Return the URLs in a file, each once: one a line, or a JSON list where the name ends in `.json`.

    Raises: ConfigError naming the file, the line or entry, and the reason.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise ConfigError(f"--worker-file {path}: it is longer than {MAX_FILE_BYTES} bytes")
        text = content.decode()
    except OSError as error:
        raise ConfigError(f"--worker-file {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"--worker-file {path}: it is not UTF-8: {error.reason}") from None
    entries = _json_entries(path, text) if path.suffix == ".json" else _line_entries(text)
    for where, url in entries:
        try:
            Origin.parse(url)
        except BadRequest as error:
            raise ConfigError(f"--worker-file {path}: {where}: {error.message}") from None
    return tuple(dict.fromkeys(url for _, url in entries))


def _line_entries(text: str) -> list[tuple[str, str]]:
    lines = enumerate(text.splitlines(), start=1)
    stripped = ((number, line.partition("#")[0].strip()) for number, line in lines)
    return [(f"line {number}", url) for number, url in stripped if url]


def _json_entries(path: Path, text: str) -> list[tuple[str, str]]:
    try:
        urls = msgspec.json.decode(text, type=list[str])
    except (msgspec.DecodeError, RecursionError) as error:
        raise ConfigError(f"--worker-file {path}: expected a JSON list of URLs: {error}") from None
    return [(f"entry {number}", url) for number, url in enumerate(urls, start=1)]


def _stamp_of(path: Path) -> _Stamp | None:
    """Return what changes when a file does; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_size, status.st_ino)
