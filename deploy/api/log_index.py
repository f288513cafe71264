"""LogIndex: a run's log, folded as it grows: the curve of what was in force, bad samples, rounds, the last control.

Each entry is read once. Memory grows with the windows and the bad samples, not with the entries.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any, Self

from deploy.api.models import Limit
from deploy.observe.run_log import SCHEDULE, plain_entry
from deploy.runs.config import RunConfig
from scoring import LogEntry, Prototypes
from scoring.records import CONTROL_KINDS
from scoring.temperature import DistanceProfile

BAD_SAMPLE = "bad_sample"
QUIET_KINDS = (SCHEDULE, BAD_SAMPLE)
"""Kinds that the trainer and the loaders write in the course of a run; the others are changes."""
CURVE_POINTS = 2000
"""Most points of the past in an answer; a longer curve is thinned out."""


class LogIndex:
    """The folded log. Safe to use from several threads."""

    def __init__(self, read: Callable[..., list[LogEntry]], *, initial: tuple[float | None, float | None]) -> None:
        """Read nothing yet; `initial` is the effective size and temperature in force before the first entry."""
        self._read = read
        self._lock = threading.Lock()
        self._after = 0
        self._points = {0: initial}
        self._bad: dict[Any, dict[str, Any]] = {}
        self._num_bad = 0
        self.rounds: list[dict[str, Any]] = []
        self.last_control: dict[str, Any] | None = None
        """The newest change by a person or a program."""
        self.distances: str | None = None
        """File of distances that a control put in use last; None for the one of the configuration."""

    def update(self) -> Self:
        """Fold the entries since the last call, and return this index."""
        with self._lock:
            for entry in self._read(after=self._after):
                self._after = max(self._after, entry.sequence)
                if entry.effective_size is not None or entry.temperature is not None:
                    self._points[entry.step] = finite(entry.effective_size), finite(entry.temperature)
                if entry.kind in CONTROL_KINDS:
                    self.last_control = plain_entry(entry)
                if entry.kind == "distances":
                    self.distances = str(entry.value)
                elif entry.kind == "round":
                    detail = json.loads(entry.detail)
                    facts = {"kind": entry.value, "step": entry.step, "window": entry.window, "time": entry.time}
                    facts |= {"kept": detail.get("kept"), "threshold": finite(detail.get("threshold"))}
                    # A new list: readers may be at the old one.
                    self.rounds = [*self.rounds, facts]
                elif entry.kind == BAD_SAMPLE:
                    self._num_bad += 1
                    sample_id = int(entry.value) if isinstance(entry.value, int | float) else None
                    sample = self._bad.setdefault(entry.value, {"sample_id": sample_id, "times": 0})
                    sample |= {"reason": entry.reason, "times": sample["times"] + 1}
                    sample |= {"step": entry.step, "time": entry.time}
        return self

    def curve(self) -> list[list[float | None]]:
        """Return [step, effective size, temperature] for each step at which one of them changed.

        A curve of more than CURVE_POINTS is thinned out evenly.
        """
        self.update()
        with self._lock:
            points = [[step, *in_force] for step, in_force in sorted(self._points.items())]
        stride = -(-len(points) // CURVE_POINTS)
        return points[::-1][::stride][::-1]  # from the end on: the present value is always among them

    def bad_samples(self, limit: Limit = 100) -> dict[str, Any]:
        """Return the samples that could not be decoded, and why."""
        self.update()
        with self._lock:
            newest = sorted(self._bad.values(), key=lambda sample: -sample["time"])[:limit]
            return {"total": self._num_bad, "samples": newest}


def initial_in_force(config: RunConfig) -> tuple[float | None, float | None]:
    """Return the effective size and temperature that a run begins with; None for a policy that has none."""
    data, curriculum = config.data, config.curriculum
    if data.prototypes is None:
        return None, None
    direction = "hard" if "hard" in curriculum.policy else "prototypical"
    try:
        temperature = DistanceProfile(Prototypes.load(data.prototypes).distance).solve(curriculum.start, direction)
    except ValueError:
        # These distances cannot give that size; the curve then begins with the log's first entry.
        return None, None
    return finite(curriculum.start), finite(temperature)


def finite(value: Any) -> Any:
    """Return a JSON value with None for the numbers that JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): finite(item) for name, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, Sequence) and not isinstance(value, str) else value
