"""LogIndex: a run's log, folded as it grows: the curve of what was in force, bad samples, rounds, the last control.

Each entry is read once. Memory grows with the windows and the bad samples, not with the entries.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

from deploy.observe.run_log import SCHEDULE, plain_entry
from scoring import LogEntry
from scoring.records import CONTROL_KINDS

BAD_SAMPLE = "bad_sample"
QUIET_KINDS = (SCHEDULE, BAD_SAMPLE)
"""Kinds that the trainer and the loaders write in the course of a run; the others are changes."""
CURVE_POINTS = 2000
"""Most points of the past in an answer; a longer curve is thinned out."""


class LogIndex:
    """The folded log. Safe to use from several threads."""

    def __init__(self, read: Callable[..., list[LogEntry]], *, initial: tuple[float | None, float | None]) -> None:
        """Begin with nothing read.

        Args:
            read: returns the entries `after` a sequence number.
            initial: effective size and temperature in force before the first entry.
        """
        self._read = read
        self._lock = threading.Lock()
        self._after = 0
        self._points = {0: initial}
        self._bad: dict[Any, dict[str, Any]] = {}
        self._num_bad = 0
        self._rounds: list[dict[str, Any]] = []
        self._last_control: dict[str, Any] | None = None
        self._distances: str | None = None

    def curve(self) -> list[list[float | None]]:
        """Return [step, effective size, temperature] for each step at which one of them changed."""
        with self._lock:
            self._follow()
            points = [[step, *in_force] for step, in_force in sorted(self._points.items())]
        stride = -(-len(points) // CURVE_POINTS)
        return points[::-1][::stride][::-1]  # from the end on: the present value is always among them

    def bad_samples(self, limit: int) -> dict[str, Any]:
        """Return the "total" of draws that met a bad sample, and the last "samples"."""
        with self._lock:
            self._follow()
            newest = sorted(self._bad.values(), key=lambda sample: -sample["time"])[:limit]
            return {"total": self._num_bad, "samples": newest}

    def rounds(self) -> list[dict[str, Any]]:
        """Return the selection rounds, in order."""
        with self._lock:
            self._follow()
            return list(self._rounds)

    def last_control(self) -> dict[str, Any] | None:
        """Return the newest change by a person or a program."""
        with self._lock:
            self._follow()
            return self._last_control

    def distances(self) -> str | None:
        """Return the file of distances that a control put in use last; None for the one of the configuration."""
        with self._lock:
            self._follow()
            return self._distances

    def _follow(self) -> None:
        for entry in self._read(after=self._after):
            self._after = max(self._after, entry.sequence)
            if entry.effective_size is not None or entry.temperature is not None:
                self._points[entry.step] = finite(entry.effective_size), finite(entry.temperature)
            if entry.kind in CONTROL_KINDS:
                self._last_control = plain_entry(entry)
            if entry.kind == "distances":
                self._distances = str(entry.value)
            elif entry.kind == "round":
                detail = json.loads(entry.detail)
                facts = {"kind": entry.value, "step": entry.step, "window": entry.window, "time": entry.time}
                facts |= {"kept": detail.get("kept"), "threshold": finite(detail.get("threshold"))}
                self._rounds.append(facts)
            elif entry.kind == BAD_SAMPLE:
                self._num_bad += 1
                sample_id = int(entry.value) if isinstance(entry.value, int | float) else None
                sample = self._bad.setdefault(entry.value, {"sample_id": sample_id, "times": 0})
                sample |= {"reason": entry.reason, "times": sample["times"] + 1}
                sample |= {"step": entry.step, "time": entry.time}


def finite(value: Any) -> Any:
    """Return a JSON value with None for the numbers that JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): finite(item) for name, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, Sequence) and not isinstance(value, str) else value
