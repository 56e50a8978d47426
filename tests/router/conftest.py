"""A rule for all tests here: what goes wrong outside any call, in a callback or a task, fails the test."""

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def nothing_fails_out_of_sight(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Event loops log what a callback raised, and go on: nobody else would notice."""
    yield
    assert [record.getMessage() for record in caplog.get_records("call") if record.name == "asyncio"] == []
