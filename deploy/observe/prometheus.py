"""The metrics for Prometheus: the text of `/metrics`, and Ray's exporter for runs under Ray.

`/metrics` is made from the state at the time of the request. Ray's exporter publishes values when they are set, so a
thread sets them every few seconds. Ray puts `ray_` before each name; our scrape configuration removes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from deploy.observe.metrics import METRICS, State, readings
from deploy.observe.periodic import periodic

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
EVERY_S = 5.0


def metrics_text(state: State) -> bytes:
    """Return the run's metrics in Prometheus' text format, from the answer of /api/v1/state."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshot(state))
    return generate_latest(registry)


class _Snapshot(Collector):
    """One state of a run as metric families."""

    def __init__(self, state: State) -> None:
        self._state = state

    def collect(self) -> Iterator[Family]:
        """The families that have a value."""
        families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
        for metric, labels, value in readings(self._state):
            if metric.name not in families:
                kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
                families[metric.name] = kind(metric.name, metric.help, labels=metric.labels)
            families[metric.name].add_metric(list(labels.values()), value)
        yield from families.values()


@contextmanager
def exported_to_ray(source: Callable[[], State], *, every_s: float = EVERY_S) -> Iterator[None]:
    """Export a run's metrics through Ray, which must have been initialised, until the block ends.

    Args:
        source: returns the run's state.
        every_s: seconds between two readings.
    """
    exporter = RayExporter(source)
    trouble = "the metrics could not be read; the next reading has them"
    with periodic(exporter.export, every_s=every_s, name="ray-metrics", trouble=trouble):
        yield


class RayExporter:
    """Sets the run's metrics as gauges of Ray.

    Counters are gauges too: a Ray counter does not exist before its first increment, so `increase()` would miss it.
    """

    def __init__(self, source: Callable[[], State]) -> None:
        from ray.util.metrics import Gauge

        self._source = source
        self._gauges: dict[str, Any] = {
            metric.name: Gauge(metric.name, description=metric.help, tag_keys=metric.labels) for metric in METRICS
        }

    def export(self) -> None:
        """Set all metrics to their present values."""
        for metric, labels, value in readings(self._source()):
            self._gauges[metric.name].set(value, tags=labels)
