"""What calls add up to, and what that costs in memory and labels."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from espalier.router.histogram import Histogram
from espalier.router.ledger import CLIENT_GONE, MAX_PENDING, OTHER_PATH, CallRecord, Ledger


def record(path: str = "/generate", *, status: int = 200, head_s: float = 1.5) -> CallRecord:
    return CallRecord("POST", path, b"id", None, 1.0, status, head_s, 0.0, 10, 20)


@given(st.lists(st.floats(0, 50), max_size=30), st.lists(st.floats(0, 50), max_size=30))
def test_buckets_hold_what_lies_at_or_below_their_upper_end(first: list[float], second: list[float]) -> None:
    histogram = Histogram((1.0, 5.0, 25.0))
    histogram.add(first)
    histogram.add(second)
    values = first + second
    assert histogram.buckets() == [
        (name, float(sum(value <= bound for value in values)))
        for name, bound in (("1.0", 1), ("5.0", 5), ("25.0", 25), ("+Inf", float("inf")))
    ]
    assert histogram.total == pytest.approx(sum(values))


def test_calls_add_up_by_path_method_and_status() -> None:
    ledger = Ledger()
    for status in (200, 200, 503):
        ledger.add(record(status=status))
    ((path, figures),) = ledger
    assert path == "/generate"
    assert figures.replies == {("POST", 200): 2, ("POST", 503): 1}
    assert (figures.request_bytes, figures.reply_bytes) == (30, 60)
    assert figures.durations.buckets()[-1] == ("+Inf", 3.0)
    assert figures.first_bytes.total == pytest.approx(1.5)


def test_call_whose_client_left_before_the_reply_has_no_time_to_first_byte() -> None:
    ledger = Ledger()
    ledger.add(record(status=CLIENT_GONE, head_s=0.0))
    ((_, figures),) = ledger
    assert figures.first_bytes.buckets()[-1] == ("+Inf", 0.0)
    assert figures.durations.buckets()[-1] == ("+Inf", 1.0)


def test_paths_that_clients_make_up_share_one_label() -> None:
    ledger = Ledger()
    for number in range(3 * MAX_PENDING):
        ledger.add(record(f"/made/up/{number}"))
    assert [path for path, _ in ledger] == [OTHER_PATH]
    ((_, figures),) = ledger
    assert figures.replies["POST", 200] == 3 * MAX_PENDING
