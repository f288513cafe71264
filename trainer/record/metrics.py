"""The numbers of a run: `metrics.jsonl`, one JSON object a line, and the meter behind images/s and data wait."""

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class MetricsLog:
    """Appends lines to metrics.jsonl; a resumed run drops the lines that it is about to write again."""

    def __init__(self, path: str | Path, *, clock: Callable[[], float] = time.time) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._clock = clock

    def rewind(self, step: int) -> None:
        """Drop the lines of steps at or after `step`, and a torn last line."""
        # Written aside and renamed: a reader, or a crash, finds the old lines or the new ones.
        kept = [line for line in read_metrics(self.path) if line["step"] < step]
        temporary = self.path.with_suffix(".writing")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), "ascii")
        os.replace(temporary, self.path)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Append one line; NaN and infinity, which JSON does not have, are written as null."""
        line: dict[str, Any] = {"step": step, "time": round(self._clock(), 3)}
        for name, value in values.items():
            line[name] = None if isinstance(value, float) and not math.isfinite(value) else value
        with self.path.open("a", encoding="ascii") as file:
            file.write(json.dumps(line) + "\n")


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics.jsonl, without a last line that a crash tore; empty when there is no file."""
    try:
        text = Path(path).read_text("ascii")
    except FileNotFoundError:
        return []
    whole = text[: text.rfind("\n") + 1]
    return [json.loads(line) for line in whole.splitlines()]


class Meter:
    """Measures images a second, and the share of the time that a step waits for data, between two readings."""

    def __init__(self, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._start = clock()
        self._images = 0
        self._wait_s = 0.0

    def add(self, images: int, wait_s: float) -> None:
        """Count the images of one step and the seconds that it waited for them."""
        self._images += images
        self._wait_s += wait_s

    def skip(self, seconds: float) -> None:
        """Leave out time in which the run paused."""
        self._start += seconds

    def read(self) -> dict[str, float]:
        """Return `images_per_s` (of this rank's count) and `data_wait`, in [0, 1], and restart."""
        elapsed_s = max(self._clock() - self._start, 1e-9)
        values = {"images_per_s": self._images / elapsed_s, "data_wait": min(self._wait_s / elapsed_s, 1.0)}
        self._start, self._images, self._wait_s = self._clock(), 0, 0.0
        return values
