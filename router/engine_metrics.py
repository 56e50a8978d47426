"""Joins the workers' Prometheus metrics into one text, each sample labelled with its worker.

Each family stands once, with one HELP and one TYPE. What cannot be joined is told in a comment: a scrape of
the fleet does not fail because one worker has no metrics.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

LABEL: Final = "worker_addr"
"""The label that names the worker, as SGLang's router calls it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What a worker answered to `/metrics`: its text, or why there is none."""

    url: str
    text: str | None
    problem: str = ""


def joined(exports: Sequence[Export]) -> bytes:
    """Return all metrics in Prometheus' text format 0.0.4."""
    families: dict[str, Metric] = {}
    comments: list[str] = []
    for export in exports:
        problem = export.problem
        if export.text is not None:
            try:
                problem = _add(families, export.url, list(text_string_to_metric_families(export.text)))
            except (ValueError, KeyError, IndexError) as error:
                problem = f"its metrics cannot be read: {error}"
        if problem:
            comments.append(f"# {LABEL} {export.url}: {' '.join(problem.split())}\n")
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(families.values()))
    return generate_latest(registry) + "".join(comments).encode()


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _add(families: dict[str, Metric], url: str, exported: Iterable[Metric]) -> str:
    """Add a worker's families to `families`; return what was left out and why, or nothing."""
    left_out: list[str] = []
    for metric in exported:
        name = _written_name(metric)
        family = families.setdefault(name, Metric(metric.name, metric.documentation, metric.type))
        if family.type != metric.type:
            left_out.append(f"{name} is a {metric.type} here and a {family.type} elsewhere")
            continue
        for sample in metric.samples:
            labels = {**sample.labels, LABEL: url}
            family.add_sample(sample.name, labels, sample.value, sample.timestamp)
    return "; ".join(left_out)


def _written_name(metric: Metric) -> str:
    """Return the name under which a family is written: no two families may share it."""
    return f"{metric.name}_total" if metric.type == "counter" else metric.name
