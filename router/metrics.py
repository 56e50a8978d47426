"""What `/metrics` shows, gathered when it is asked for: a call costs a few integer additions."""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from ..calls import Middleware
from ..version import __version__
from .asgi_exchange import Receive, Scope, Send
from .data_plane import DataPlane
from .health import State
from .histogram import Histogram
from .ledger import Ledger
from .tally import Tally
from .workers import WorkerPool

_is_metric_name: Final = re.compile("[a-z][a-z0-9_]*").fullmatch

_log = logging.getLogger("espalier.router")


class RouterCollector(Collector):
    """Reads the router's own counters, and those of its middleware."""

    def __init__(
        self,
        pool: WorkerPool,
        data_plane: DataPlane,
        middleware: Sequence[Middleware],
        ledger: Ledger,
        tally: Tally,
    ) -> None:
        self._pool = pool
        self._data_plane = data_plane
        self._middleware = middleware
        self._ledger = ledger
        self._tally = tally

    def collect(self) -> Iterable[Metric]:
        """Yield the current figures; where two have one name, the router's own, else the first."""
        told: set[str] = set()
        for family in self._families():
            if family.name not in told:
                told.add(family.name)
                yield family

    def _families(self) -> Iterator[Metric]:
        yield InfoMetricFamily("espalier_build", "Which Espalier this is.", {"version": __version__})
        yield from _of_ledger(self._ledger)
        yield from _of_workers(self._pool)
        yield GaugeMetricFamily("espalier_in_flight", "Calls in the router.", self._data_plane.in_flight)
        yield CounterMetricFamily(
            "espalier_clients_hung_up", "Calls whose client went away.", self._data_plane.hung_up_total
        )
        yield from _of_tally(self._tally)
        for layer in self._middleware:
            yield from _of_middleware(layer)


class MetricsEndpoint:
    """An application of `/metrics` alone, for a port of its own."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  ASGI's
        """Serve one HTTP request."""
        is_found = scope["path"] == "/metrics" and scope["method"] in ("GET", "HEAD")
        body = generate_latest(self._registry) if is_found else b"There is nothing but GET /metrics\n"
        headers = [
            (b"content-type", CONTENT_TYPE_LATEST.encode() if is_found else b"text/plain"),
            (b"content-length", b"%d" % len(body)),
        ]
        await send({"type": "http.response.start", "status": 200 if is_found else 404, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def registry_of(collector: Collector) -> CollectorRegistry:
    """Return a registry of this router, with the process's CPU time, memory and open files.

    It is one of its own, so that several routers may live in one process.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    ProcessCollector(registry=registry)
    return registry


def _of_ledger(ledger: Ledger) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        "espalier_requests",
        "Requests answered, by path, method and status; 499 where the client left before.",
        labels=["path", "method", "status"],
    )
    first_bytes = HistogramMetricFamily(
        "espalier_time_to_first_byte_seconds",
        "From a request's head to its reply's head, in seconds.",
        labels=["path"],
    )
    durations = HistogramMetricFamily(
        "espalier_request_duration_seconds",
        "From a request's head to its reply's last byte, in seconds.",
        labels=["path"],
    )
    received = CounterMetricFamily(
        "espalier_request_bytes", "Bytes of request bodies received.", labels=["path"]
    )
    sent = CounterMetricFamily("espalier_reply_bytes", "Bytes of reply bodies sent.", labels=["path"])
    for path, figures in ledger:
        for (method, status), count in sorted(figures.replies.items()):
            requests.add_metric([path, method, str(status)], count)
        _add_histogram(first_bytes, [path], figures.first_bytes)
        _add_histogram(durations, [path], figures.durations)
        received.add_metric([path], figures.request_bytes)
        sent.add_metric([path], figures.reply_bytes)
    yield from (requests, first_bytes, durations, received, sent)


def _of_workers(pool: WorkerPool) -> Iterator[Metric]:
    replies = CounterMetricFamily(
        "espalier_replies", "Replies by worker and status.", labels=["worker", "status"]
    )
    in_flight = GaugeMetricFamily(
        "espalier_worker_in_flight", "Calls that a worker holds.", labels=["worker"]
    )
    states = GaugeMetricFamily(
        "espalier_worker_state", "1 for the state a worker is in.", labels=["worker", "state"]
    )
    for worker in pool:
        for status, count in sorted(worker.replies.items()):
            replies.add_metric([worker.url, str(status)], count)
        in_flight.add_metric([worker.url], worker.in_flight)
        for state in State:
            states.add_metric([worker.url, state], float(worker.health.state is state))
    yield from (replies, in_flight, states)


def _of_tally(tally: Tally) -> Iterator[Metric]:
    yield _by_label("espalier_retries", "Attempts after a call's first.", "reason", tally.retries)
    yield _by_label(
        "espalier_aborts", "Generations whose worker was told to end them.", "cause", tally.aborts
    )
    yield _by_label("espalier_refused", "Calls that were not let in.", "reason", tally.refused)
    yield GaugeMetricFamily("espalier_queue_length", "Calls that wait to be let in.", tally.waiting)
    waits = HistogramMetricFamily(
        "espalier_queue_wait_seconds", "How long calls waited to be let in, in seconds."
    )
    _add_histogram(waits, [], tally.queue_waits)
    yield waits


def _of_middleware(layer: Middleware) -> Iterator[Metric]:
    try:
        figures = list(layer.stats().items())
    except Exception:  # noqa: BLE001  a plug-in's bug costs its own figures, not everybody's
        _log.exception("event=stats_failed middleware=%s", type(layer).__name__)
        return
    for name, value in figures:
        if not _is_metric_name(name):
            continue
        metric = f"espalier_{name}"
        if name.endswith("_total"):
            yield CounterMetricFamily(metric.removesuffix("_total"), f"{name} of a middleware.", value)
        else:
            yield GaugeMetricFamily(metric, f"{name} of a middleware.", value)


def _by_label(name: str, documentation: str, label: str, counts: Counter[str]) -> Metric:
    family = CounterMetricFamily(name, documentation, labels=[label])
    for value, count in sorted(counts.items()):
        family.add_metric([value], count)
    return family


def _add_histogram(family: HistogramMetricFamily, labels: Sequence[str], histogram: Histogram) -> None:
    family.add_metric(labels, histogram.buckets(), histogram.total)
