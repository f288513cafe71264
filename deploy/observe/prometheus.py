"""The metrics as Prometheus reads them: the text of `/metrics`, and Ray's exporter for runs under Ray.

`/metrics` is made from the state at the moment of the question. Ray's exporter takes values when they are set, so a
thread sets them every few seconds; Ray puts `ray_` before each name, which our scrape configuration takes off again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from deploy.observe.metrics import METRICS, State, readings

log = logging.getLogger(__name__)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
EVERY_S = 5.0
JOIN_S = 10.0


def metrics_text(state: State) -> bytes:
    """The run's metrics in Prometheus' text format, from what /api/v1/state answers."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshot(state))
    return generate_latest(registry)


class _Snapshot(Collector):
    """One state as metric families."""

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


class RayExporter:
    """A thread that hands the metrics to Ray for as long as its `with` block lasts."""

    def __init__(self, source: Callable[[], State], *, every_s: float = EVERY_S) -> None:
        """Make the metrics known to Ray, which must have been initialised.

        Args:
            source: gives the run's state.
            every_s: seconds between two readings.
        """
        self._source, self._every_s = source, every_s
        self._metrics: dict[str, Any] = _ray_metrics()
        self._counted: dict[tuple[str, ...], float] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="ray-metrics", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(JOIN_S)

    def export(self) -> None:
        """Hand over the present values."""
        for metric, labels, value in readings(self._source()):
            target = self._metrics[metric.name]
            if metric.kind == "gauge":
                target.set(value, tags=labels)
                continue
            key = (metric.name, *labels.values())
            before = self._counted.get(key, 0.0)
            self._counted[key] = value
            grown = value - before if value >= before else value  # a loader that started anew counts from 0
            if grown > 0:
                target.inc(grown, tags=labels)

    def _follow(self) -> None:
        while not self._over.wait(self._every_s):
            try:
                self.export()
            except Exception:  # the run's actors may be away for a moment; the next reading has their numbers
                log.warning("the metrics could not be read", exc_info=True)


def _ray_metrics() -> dict[str, Any]:
    from ray.util import metrics as ray_metrics

    kinds: dict[str, Any] = {"gauge": ray_metrics.Gauge, "counter": ray_metrics.Counter}
    return {
        metric.name: kinds[metric.kind](metric.name, description=metric.help, tag_keys=metric.labels)
        for metric in METRICS
    }
