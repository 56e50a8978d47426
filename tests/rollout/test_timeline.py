import re
from collections.abc import Callable
from itertools import count

from espalier.rollout import RolloutConfig, Status
from espalier.rollout.command import run
from espalier.rollout.timeline import (
    MAX_SPANS,
    RequestLog,
    RequestSpan,
    Timeline,
    decode_timeline,
    encode_timeline,
    request_metrics,
)
from espalier.rollout.timeline_chart import MAX_ROWS, timeline_chart
from espalier.sglang import FinishReason, MetaInfo
from tests.rollout.fake_router import FakeRouter

COLOURS = re.compile(r'fill="(var\(--series-\d\))"')


def ticking() -> Callable[[], float]:
    ticks = count(100.0)
    return lambda: next(ticks)


def ended(reason: str | None, **told: float) -> MetaInfo:
    meta = MetaInfo(
        finish_reason=None if reason is None else FinishReason(type=reason),
        output_token_logprobs=[(-0.5, 7, None)],
    )
    meta.e2e_latency = told.get("latency_s")
    meta.queue_time = told.get("queue_s")
    meta.decode_throughput = told.get("speed")
    return meta


def spans(number: int, **changes: float) -> list[RequestSpan]:
    values = {"start_s": 0.0, "first_token_s": None, "end_s": 2.0, "tokens": 5, **changes}
    return [RequestSpan(status=Status.COMPLETED, **values) for _ in range(number)]  # type: ignore[arg-type]


def test_requests_are_told_from_the_first_one_on() -> None:
    log = RequestLog(ticking())
    log.begin("a")
    log.begin("b")
    log.note_first_token("a")
    log.note_abort()
    log.end("b", ended("abort"))
    log.end("a", ended("stop"))
    timeline = log.take()
    assert [(span.start_s, span.first_token_s, span.end_s) for span in timeline.requests] == [
        (1, None, 4),
        (0, 2, 5),
    ]
    assert [span.status for span in timeline.requests] == [Status.ABORTED, Status.COMPLETED]
    assert (timeline.abort_s, timeline.requests[0].tokens) == (3, 1)
    assert log.take() == Timeline(requests=[])


def test_requests_without_a_reply_or_an_end_have_failed() -> None:
    log = RequestLog(ticking())
    for rid, meta in (("a", None), ("b", ended(None)), ("c", ended("exploded"))):
        log.begin(rid)
        log.end(rid, meta)
    assert [span.status for span in log.take().requests] == [Status.FAILED] * 3


def test_more_requests_than_are_kept_are_counted() -> None:
    log = RequestLog(ticking())
    for _ in range(MAX_SPANS + 3):
        log.begin("a")
        log.end("a", None)
    timeline = log.take()
    assert (len(timeline.requests), timeline.left_out) == (MAX_SPANS, 3)


def test_what_workers_tell_of_their_time_becomes_metrics() -> None:
    log = RequestLog(ticking())
    for latency_s in (1.0, 2.0, 6.0):
        log.begin("a")
        log.end("a", ended("stop", latency_s=latency_s, speed=50.0))
    metrics = request_metrics(log.take())
    assert metrics["perf/request/e2e_latency/mean"] == 3
    assert metrics["perf/request/e2e_latency/median"] == 2
    assert metrics["perf/request/e2e_latency/max"] == 6
    assert metrics["perf/decode/throughput/min"] == 50
    assert not any("queue_time" in name for name in metrics)


def test_a_line_is_read_back() -> None:
    timeline = Timeline(requests=spans(2), left_out=1, abort_s=1.5)
    assert decode_timeline(encode_timeline(3, timeline)) == timeline


def test_few_requests_have_a_row_each_and_the_abort_a_line() -> None:
    chart = timeline_chart(Timeline(requests=spans(3, first_token_s=0.5), abort_s=1.0))
    assert len(COLOURS.findall(chart)) == 3
    assert "completed, 5 tokens, 0 to 2 s, first token at 0.5 s" in chart
    assert "stroke-dasharray" in chart
    assert "stroke-dasharray" not in timeline_chart(Timeline(requests=spans(3)))


def test_many_requests_are_drawn_as_how_many_ran() -> None:
    small, large = (
        timeline_chart(Timeline(requests=spans(number), left_out=7)) for number in (MAX_ROWS + 1, 20_000)
    )
    assert "<polygon" in large
    assert "completed: 20,000 requests, at most 20,000 at a time" in large
    assert "7 more are not shown" in large
    assert len(large) < len(small) * 1.2


def test_a_step_without_requests_has_no_timeline() -> None:
    assert "Nothing was measured" in timeline_chart(Timeline(requests=[]))


def test_requests_that_took_no_time_are_drawn() -> None:
    assert len(COLOURS.findall(timeline_chart(Timeline(requests=spans(2, end_s=0.0))))) == 2


def test_a_run_writes_down_every_request(fake: FakeRouter, make_config: Callable[..., RolloutConfig]) -> None:
    config = make_config(num_rollout=2)
    assert run(config) == 0
    lines = (config.output_dir / "requests.jsonl").read_bytes().splitlines()
    timelines = [decode_timeline(line) for line in lines]
    generations = [body for body in fake.requests if "sampling_params" in body]
    assert sum(len(timeline.requests) for timeline in timelines) == len(generations) == 24
    assert {span.status for timeline in timelines for span in timeline.requests} == {Status.COMPLETED}
    assert all(span.tokens > 0 and span.end_s >= span.start_s for span in timelines[0].requests)
