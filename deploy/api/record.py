"""A run's log, folded as it grows: the curve of what was in force, the bad samples, the rounds, the last control.

Entries are read once. What is kept grows with the windows and the bad samples, not with the entries.
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
"""What the trainer and the loaders write of themselves."""
CURVE_POINTS = 2000
"""Points of the past that are sent; of a longer run some are left out."""


class Record:
    """The fold. Safe to use from several threads."""

    def __init__(self, read: Callable[..., list[LogEntry]], *, initial: tuple[int, float | None, float | None]) -> None:
        """Begin.

        Args:
            read: gives the entries `after` a sequence.
            initial: (step 0, effective size, temperature) before the first entry.
        """
        self._read = read
        self._lock = threading.Lock()
        self._after = 0
        self._points: dict[int, tuple[float | None, float | None]] = {initial[0]: (initial[1], initial[2])}
        self._bad: dict[Any, dict[str, Any]] = {}
        self._num_bad = 0
        self._rounds: list[dict[str, Any]] = []
        self._last_control: dict[str, Any] | None = None
        self._distances: str | None = None

    def curve(self) -> list[list[float | None]]:
        """[step, effective size, temperature] from each step on at which one changed."""
        with self._lock:
            self._follow()
            points = [[step, *law] for step, law in sorted(self._points.items())]
        stride = -(-len(points) // CURVE_POINTS)
        return points[::-1][::stride][::-1]

    def bad_samples(self, limit: int) -> dict[str, Any]:
        """How many draws met one, and the last samples with the reason and how often each was met."""
        with self._lock:
            self._follow()
            newest = sorted(self._bad.values(), key=lambda sample: -sample["time"])[:limit]
            return {"total": self._num_bad, "samples": newest}

    def rounds(self) -> list[dict[str, Any]]:
        """The selection rounds, in order."""
        with self._lock:
            self._follow()
            return list(self._rounds)

    def last_control(self) -> dict[str, Any] | None:
        """The newest change by a person or a program."""
        with self._lock:
            self._follow()
            return self._last_control

    def distances(self) -> str | None:
        """The file whose distances were taken into use last; None for those of the configuration."""
        with self._lock:
            self._follow()
            return self._distances

    def _follow(self) -> None:
        for entry in self._read(after=self._after):
            self._after = max(self._after, entry.sequence)
            self._fold(entry)

    def _fold(self, entry: LogEntry) -> None:
        if entry.effective_size is not None or entry.temperature is not None:
            self._points[entry.step] = _finite(entry.effective_size), _finite(entry.temperature)
        if entry.kind in CONTROL_KINDS:
            self._last_control = plain_entry(entry)
        if entry.kind == "distances":
            self._distances = str(entry.value)
        if entry.kind == "round":
            cut = json.loads(entry.detail)
            facts = {"kind": entry.value, "step": entry.step, "window": entry.window, "time": entry.time}
            self._rounds.append({**facts, "kept": cut.get("kept"), "threshold": _finite(cut.get("threshold"))})
        if entry.kind == BAD_SAMPLE:
            self._num_bad += 1
            known = self._bad.setdefault(entry.value, {"sample_id": _sample_id(entry.value), "times": 0})
            known |= {"reason": entry.reason, "times": known["times"] + 1, "step": entry.step, "time": entry.time}


def finite(value: Any) -> Any:
    """JSON values with None for what JSON cannot say."""
    if isinstance(value, float):
        return _finite(value)
    if isinstance(value, dict):
        return {str(name): finite(item) for name, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, Sequence) and not isinstance(value, str) else value


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _sample_id(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) else None
