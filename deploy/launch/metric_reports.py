"""The metric that an adaptive schedule follows, on its way from the trainer to the selection.

It is the loss, averaged over each window, or an accuracy of the run's evaluations. Each value goes to the run log under
an identity made of its name and step, so a resumed run that measures it again adds nothing, and every effective size
follows from the log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from scoring import Event, SelectionPort

log = logging.getLogger(__name__)

LOSS = "loss"


class MetricReports:
    """Sends the values from a thread of its own: training waits for nothing. Used on the first rank."""

    def __init__(self, selection: SelectionPort, *, metric: str, window_steps: int) -> None:
        self._selection, self._metric, self._window_steps = selection, metric, window_steps
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="metric")
        self._losses: list[float] = []
        self._window: int | None = None

    def on_step(self, step: int, values: dict[str, Any]) -> None:
        """Take the loss of a logged step; the mean of a window's values goes out with its last, or soon after."""
        if self._window is None:
            self._window = (step - 1) // self._window_steps
        self._losses.append(float(values[LOSS]))
        if step // self._window_steps > self._window:
            mean, self._losses = sum(self._losses) / len(self._losses), []
            self._window = step // self._window_steps
            self._report(step, mean)

    def after(self, evaluate: Callable[[int, Any], dict[str, float]]) -> Callable[[int, Any], dict[str, float]]:
        """The evaluation, with its value of the metric sent on."""

        def evaluated(step: int, method: Any) -> dict[str, float]:
            values = evaluate(step, method)
            self._report(step, values[self._metric])
            return values

        return evaluated

    def _report(self, step: int, value: float) -> None:
        request = f"metric {self._metric} {step}"
        event = Event(kind="metric", author="trainer", message=self._metric, value=value, request=request)
        self._thread.submit(self._send, event)

    def _send(self, event: Event) -> None:
        try:
            self._selection.record(event)
        except Exception:  # any failure of a remote service: the size in force stays
            log.warning("%s could not be reported to the selection", event.message, exc_info=True)
