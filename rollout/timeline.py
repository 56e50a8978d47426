"""When the requests of a rollout began and ended: kept while it runs, and written as one line a step."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from ..sglang import FinishType, MetaInfo
from .metrics import Metrics
from .sample import STATUS_AT_FINISH, Status

MAX_SPANS: Final = 20_000
"""Requests of a step that are kept, about 50 bytes each on disk; those beyond are only counted."""


class RequestSpan(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """One request to the router. Times are in seconds since the step's first request began."""

    start_s: float
    first_token_s: float | None
    """None where the reply came in one piece, or nothing came"""
    end_s: float
    status: Status
    """what the reply made of the sample; failed where there was none"""
    tokens: int
    """tokens that it sampled"""
    latency_s: float | None = None
    """how long it took by the worker's clock; None where the worker does not tell, and so below"""
    queue_s: float | None = None
    """how long it waited at the worker"""
    decode_tokens_per_s: float | None = None
    """how fast the worker sampled it"""


class Timeline(msgspec.Struct, frozen=True, kw_only=True):
    """The requests of one step, in the order in which they ended."""

    requests: list[RequestSpan]
    left_out: int = 0
    """requests beyond `MAX_SPANS`"""
    abort_s: float | None = None
    """when the rest was ended, because the batch was complete; None where nothing was"""


class RequestLog:
    """Hears of requests, by id, as they begin and end. `clock` tells seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began_s: dict[str, float] = {}
        self._first_token_s: dict[str, float] = {}
        self._spans: list[RequestSpan] = []
        self._left_out = 0
        self._abort_s: float | None = None

    def begin(self, rid: str) -> None:
        """Hear that a request is sent."""
        self._began_s[rid] = self._clock()

    def note_first_token(self, rid: str) -> None:
        """Hear that tokens came; only the first time counts."""
        if rid in self._began_s:
            self._first_token_s.setdefault(rid, self._clock())

    def end(self, rid: str, meta: MetaInfo | None) -> None:
        """Hear that a request is over; `meta` is its reply's, None where it has none."""
        start_s, first_token_s = self._began_s.pop(rid), self._first_token_s.pop(rid, None)
        if len(self._spans) >= MAX_SPANS:
            self._left_out += 1
            return
        meta = meta or MetaInfo()
        self._spans.append(
            RequestSpan(
                start_s=start_s,
                first_token_s=first_token_s,
                end_s=self._clock(),
                status=_status(meta),
                tokens=len(meta.output_token_logprobs or ()),
                latency_s=meta.e2e_latency,
                queue_s=meta.queue_time,
                decode_tokens_per_s=meta.decode_throughput,
            )
        )

    def note_abort(self) -> None:
        """Hear that everything that still runs is ended now; only the first time since `take` counts."""
        self._abort_s = self._clock() if self._abort_s is None else self._abort_s

    def take(self) -> Timeline:
        """Return what ended since the last call, and begin anew."""
        spans, self._spans = self._spans, []
        left_out, self._left_out = self._left_out, 0
        abort_s, self._abort_s = self._abort_s, None
        zero_s = min((span.start_s for span in spans), default=abort_s or 0.0)
        return Timeline(
            requests=[
                msgspec.structs.replace(
                    span,
                    start_s=_since(span.start_s, zero_s),
                    first_token_s=None if span.first_token_s is None else _since(span.first_token_s, zero_s),
                    end_s=_since(span.end_s, zero_s),
                )
                for span in spans
            ],
            left_out=left_out,
            abort_s=None if abort_s is None else _since(abort_s, zero_s),
        )


def request_metrics(timeline: Timeline) -> Metrics:
    """Return how long the requests took, waited and how fast they were sampled, as the workers told it."""
    spans = timeline.requests
    return {
        **_summary("request/e2e_latency", [span.latency_s for span in spans]),
        **_summary("request/queue_time", [span.queue_s for span in spans]),
        **_summary("decode/throughput", [span.decode_tokens_per_s for span in spans]),
    }


def encode_timeline(rollout_id: int, timeline: Timeline) -> bytes:
    """Return a line of `requests.jsonl`."""
    return msgspec.json.encode({"rollout_id": rollout_id, **msgspec.structs.asdict(timeline)}) + b"\n"


decode_timeline = msgspec.json.Decoder(Timeline).decode
"""Decode a line of `requests.jsonl`. Raises msgspec.DecodeError, ValidationError included."""


def _summary(name: str, told: Sequence[float | None]) -> Metrics:
    values = [value for value in told if value is not None]
    if not values:
        return {}
    return {
        f"perf/{name}/mean": statistics.fmean(values),
        f"perf/{name}/median": float(statistics.median(values)),
        f"perf/{name}/max": float(max(values)),
        f"perf/{name}/min": float(min(values)),
    }


def _status(meta: MetaInfo) -> Status:
    reason = meta.finish_reason
    if reason is None or reason.type not in STATUS_AT_FINISH:
        return Status.FAILED
    return STATUS_AT_FINISH[FinishType(reason.type)]


def _since(moment_s: float, zero_s: float) -> float:
    """Return the seconds between, to the millisecond: as much as a page can show."""
    return round(moment_s - zero_s, 3)
