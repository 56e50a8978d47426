"""Workers' metrics, joined into one text that Prometheus can read."""

import json
from collections import Counter
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from espalier.router.engine_metrics import Export, joined

CAPTURE = Path(__file__).resolve().parents[1] / "captures/v2_metrics.json"
A, B = "http://a:1", "http://b:1"


def export(url: str, text: str) -> Export:
    return Export(url=url, text=text)


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], str]:
    """Return the values as they are written: some are NaN, which equals nothing."""
    found: dict[tuple[str, frozenset[tuple[str, str]]], str] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found
            found[key] = str(sample.value)
    return found


def test_real_workers_metrics_come_back_whole_and_labelled() -> None:
    told: str = json.loads(CAPTURE.read_text(encoding="utf-8"))["response"]["text"]
    text = joined([export(A, told), export(B, told)]).decode()
    expected = {
        (name, labels | {("worker_addr", url)}): value
        for (name, labels), value in samples(told).items()
        for url in (A, B)
    }
    assert samples(text) == expected
    declared = Counter(line.split()[2] for line in text.splitlines() if line.startswith("# TYPE"))
    assert set(declared.values()) == {1}
    assert declared.keys() == {line.split()[2] for line in told.splitlines() if line.startswith("# TYPE")}
    assert Counter(line.split()[2] for line in text.splitlines() if line.startswith("# HELP")) == declared


def test_worker_without_metrics_is_told_in_a_comment() -> None:
    missing = Export(url=B, text=None, problem="no metrics:\nHTTP 404")
    text = joined([export(A, "# TYPE x gauge\nx 1\n"), missing]).decode()
    assert f"# worker_addr {B}: no metrics: HTTP 404\n" in text
    assert samples(text) == {("x", frozenset({("worker_addr", A)})): "1.0"}


def test_text_that_is_no_metrics_is_told_in_a_comment() -> None:
    for broken in ("<html>", "x{ 1", "x one"):
        text = joined([export(A, "x 1\n"), export(B, broken)]).decode()
        assert f"# worker_addr {B}: its metrics cannot be read" in text
        assert samples(text) == {("x", frozenset({("worker_addr", A)})): "1.0"}


def test_family_of_another_kind_than_elsewhere_is_left_out_and_told() -> None:
    text = joined([export(A, "# TYPE x gauge\nx 1\n"), export(B, "# TYPE x_total counter\nx_total 2\n")])
    assert len(samples(text.decode())) == 2
    text = joined([export(A, "# TYPE x gauge\nx 1\n"), export(B, "# TYPE x summary\nx_count 2\nx_sum 3\n")])
    assert samples(text.decode()) == {("x", frozenset({("worker_addr", A)})): "1.0"}
    assert f"# worker_addr {B}: x is a summary here and a gauge elsewhere\n" in text.decode()


def test_worker_cannot_pass_for_another_one() -> None:
    text = joined([export(A, 'x{worker_addr="http://b:1"} 1\n')]).decode()
    assert samples(text) == {("x", frozenset({("worker_addr", A)})): "1.0"}


def test_fleet_without_workers_has_no_metrics() -> None:
    assert joined([]) == b""
