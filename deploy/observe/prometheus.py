"""The metrics for Prometheus: the text of `/metrics`, and Ray's exporter for runs under Ray.

`/metrics` is made from the state at the time of the request. Ray's exporter publishes values when they are set, so a
thread sets them every few seconds. Ray puts `ray_` before each name; our scrape configuration removes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
    # A registry for each request: the library's global one would add the values of this process and of Python.
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshot(state))
    return generate_latest(registry)


class _Snapshot(Collector):
    """One state of a run as the library's metric families."""

    def __init__(self, state: State) -> None:
        self._state = state

    def collect(self) -> Iterator[Family]:
        """Yield the metrics that have a value, each with the readings of all its labels together."""
        families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
        for metric, labels, value in readings(self._state):
            if metric.name not in families:
                kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
                families[metric.name] = kind(metric.name, metric.help, labels=metric.labels)
            families[metric.name].add_metric(list(labels.values()), value)
        yield from families.values()


@contextmanager
def exported_to_ray(source: Callable[[], State], *, every_s: float = EVERY_S) -> Iterator[None]:
    """Export a run's metrics through Ray, which must have been initialised, until the block ends."""
    from ray.util.metrics import Gauge

    # Counters are gauges too: a Ray counter does not exist before its first increment, so `increase()` would miss it.
    gauges = {metric.name: Gauge(metric.name, description=metric.help, tag_keys=metric.labels) for metric in METRICS}

    def export() -> None:
        for metric, labels, value in readings(source()):
            gauges[metric.name].set(value, tags=labels)

    trouble = "the metrics could not be read; the next reading has them"
    with periodic(export, every_s=every_s, name="ray-metrics", trouble=trouble):
        yield
