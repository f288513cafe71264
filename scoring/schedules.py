"""Schedules: what the effective data set size should be.

A schedule by progress is built from its parameters and is then a pure function of the share of training done, so every
rank computes the same value for a window. `Adaptive` is a pure function of the metrics that were reported, which the
log keeps; so it, too, gives the same after a restart and in a replay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scoring.temperature import LARGEST_EFFECTIVE_SIZE, checked_effective_size

Schedule = Callable[[float], float]


def cosine(*, start: float = 0.2, end: float = 0.61) -> Schedule:
    """Half a cosine from `start` to `end` (Lin et al., CVPR 2025: temperatures .07 to .6 are sizes .20 to .614)."""
    first, last = checked_effective_size(start), checked_effective_size(end)
    return lambda progress: first + (last - first) * 0.5 * (1.0 - math.cos(math.pi * checked_progress(progress)))


def linear(*, start: float = 0.15, end: float = LARGEST_EFFECTIVE_SIZE, ramp: float = 1.0) -> Schedule:
    """Straight line from `start` to `end` over the first `ramp` of training, then `end`."""
    first, last = checked_effective_size(start), checked_effective_size(end)
    if not 0.0 < ramp <= 1.0:
        raise ValueError(f"ramp must be the share of training in (0, 1]; got {ramp}.")
    return lambda progress: first + (last - first) * min(1.0, checked_progress(progress) / ramp)


def linear_then_uniform(*, start: float = 0.15, end: float = LARGEST_EFFECTIVE_SIZE, ramp: float = 0.5) -> Schedule:
    """`linear` to `end` over the first `ramp` of training, then the largest size, at which draws are uniform.

    With the default end it is continuous: the ramp of the authors' library.
    """
    rising = linear(start=start, end=end, ramp=ramp)
    return lambda progress: rising(progress) if checked_progress(progress) < ramp else LARGEST_EFFECTIVE_SIZE


def fixed(*, start: float = 0.5, end: float | None = None) -> Schedule:
    """`start` throughout; `end` is there for the common signature and is not used."""
    value = checked_effective_size(start)
    return lambda progress: value + 0.0 * checked_progress(progress)


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "cosine": cosine,
    "linear": linear,
    "linear_then_uniform": linear_then_uniform,
    "fixed": fixed,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Adaptive:
    """Broaden the draw when what trainers report stops improving."""

    metric: str = "nn_accuracy"
    """Name of the metric, as reported in events of kind "metric"."""
    start: float = 0.2
    """Effective size at the beginning, share of N."""
    end: float = 0.61
    """Largest effective size."""
    increment: float = 0.05
    """How much a flat metric adds, above 0."""
    patience: int = 2
    """Reports without improvement after which it is flat, 1 or more."""
    min_gain: float = 0.01
    """Least improvement over the best that counts, relative to it, 0 or more."""
    higher_is_better: bool = True
    """True for an accuracy, False for a loss."""

    def __post_init__(self) -> None:
        """Check every field."""
        if checked_effective_size(self.start) > checked_effective_size(self.end):
            raise ValueError(f"end must be at least start ({self.start}); got {self.end}.")
        if not self.increment > 0.0 or self.patience < 1 or not self.min_gain >= 0.0:
            raise ValueError(
                "increment must be above 0, patience 1 or more, min_gain 0 or more; got "
                f"{self.increment}, {self.patience}, {self.min_gain}."
            )

    def effective_size(self, history: Sequence[float]) -> float:
        """Effective size after these reports, oldest first; a report that is not finite is no improvement."""
        size, best, flat = self.start, None, 0
        for value in history:
            if math.isfinite(value) and (best is None or self._gain(value, best) > self.min_gain * abs(best)):
                best, flat = value, 0
                continue
            flat += 1
            if flat == self.patience:
                size, flat = min(self.end, size + self.increment), 0
        return size

    def _gain(self, value: float, best: float) -> float:
        return value - best if self.higher_is_better else best - value


def checked_progress(progress: float) -> float:
    """Progress clipped to 1 from above (the last window may overhang); ValueError when negative or not a number."""
    if not progress >= 0.0:
        raise ValueError(f"progress must be the share of training done, 0 or more; got {progress}.")
    return min(1.0, float(progress))
