"""What is logged is one event a line, whatever its values are."""

import json
import logging
from typing import Any

import pytest

from espalier.router.logs import EventFormatter
from tests.router.running import router, until
from tests.router.scripted import answering, reply, scripted_worker


def record_of(message: str, *arguments: object, error: BaseException | None = None) -> logging.LogRecord:
    exc_info: Any = None if error is None else (type(error), error, error.__traceback__)
    record = logging.LogRecord("espalier.router", logging.WARNING, "x.py", 1, message, arguments, exc_info)
    record.created, record.msecs = 1_700_000_000.0, 7.0
    return record


def text_of(message: str, *arguments: object) -> str:
    begin, _, rest = (
        EventFormatter("text").format(record_of(message, *arguments)).partition(" level=warning ")
    )
    assert begin == "time=2023-11-14T22:13:20.007Z"
    return rest


@pytest.mark.parametrize(
    ("message", "arguments", "line"),
    [
        ("event=worker_dead worker=%s", ("http://w:1",), "event=worker_dead worker=http://w:1"),
        ("event=a reason=%r n=%d s=%.2f", ("no way", 3, 1.239), 'event=a reason="no way" n=3 s=1.24'),
        (
            "event=a path=%s",
            ("/x\nevent=forged level=error",),
            r'event=a path="/x\nevent=forged level=error"',
        ),
        ("event=a path=%s", ('"=',), r'event=a path="\"="'),
        ("event=a path=%s", ("",), 'event=a path=""'),
        ("event=a word=%s", ("caf\xe9",), r'event=a word="caf\u00e9"'),
        ("event=starting", (), "event=starting"),
        ("no event, %d %%", (5,), 'event=log logger=espalier.router message="no event, 5 %"'),
    ],
)
def test_values_stay_in_their_fields(message: str, arguments: tuple[object, ...], line: str) -> None:
    assert text_of(message, *arguments) == line


def test_json_has_the_same_fields_with_their_types() -> None:
    line = EventFormatter("json").format(record_of("event=a n=%d word=%s none=%s", 3, "a\nb", None))
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.007Z",
        "level": "warning",
        "event": "a",
        "n": 3,
        "word": "a\nb",
        "none": None,
    }


def test_traceback_follows_its_event() -> None:
    error: ValueError | None = None
    try:
        int("a\nb")
    except ValueError as caught:
        error = caught
    first, *rest = EventFormatter("text").format(record_of("event=call_failed", error=error)).splitlines()
    assert first.endswith(" event=call_failed")
    assert rest[0] == "    Traceback (most recent call last):"
    assert all(line.startswith("    ") for line in rest)
    (line,) = EventFormatter("json").format(record_of("event=call_failed", error=error)).splitlines()
    assert json.loads(line)["traceback"].endswith(f"ValueError: {error}")


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "espalier.access"]


def test_access_log_tells_of_each_call_and_of_nothing_that_it_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "espalier.access")
    with (
        scripted_worker(answering(reply(b"secret answer"))) as worker,
        router(worker, access_log=True) as client,
    ):
        client.post("/generate?token=secret", content=b"secret prompt", headers={"x-request-id": "mine"})
        client.get("/workers")
        until(lambda: len(logged(caplog)) == 2)
    called, own = logged(caplog)
    assert called.startswith("event=call method=POST path=/generate status=200 duration_s=0.")
    assert "request_bytes=13 reply_bytes=13 client=127.0.0.1 request_id=mine" in called
    assert "path=/workers status=200" in own
    assert "secret" not in called


def test_access_log_is_off_unless_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "espalier.access")
    with scripted_worker(answering(reply())) as worker, router(worker) as client:
        client.post("/generate")
    assert logged(caplog) == []
