"""Schedules: the effective data set size over training, by progress or by a reported metric.

A schedule by progress is built from its parameters and is then a pure function of the share of training done, so every
rank computes the same value for a window. `AdaptiveGrowth` is a pure function of the reported metrics, which the log
keeps; so it, too, gives the same after a restart and in a replay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scoring.temperature import LARGEST_EFFECTIVE_SIZE, checked_effective_size

Schedule = Callable[[float], float]
"""Share of training done, in [0, 1] -> effective size; ValueError for a share below 0 or not a number."""


def cosine(*, start: float = 0.2, end: float = 0.61) -> Schedule:
    """Return half a cosine from `start` to `end` (Lin et al., CVPR 2025: temperatures .07 to .6).

    At progress p it is start + (end - start) * (1 - cos(pi p)) / 2.

    Raises:
        ValueError: if an effective size is outside (0, 1 - 1/e].
    """
    first, last = checked_effective_size(start), checked_effective_size(end)
    return lambda progress: first + (last - first) * 0.5 * (1.0 - math.cos(math.pi * checked_progress(progress)))


def linear(*, start: float = 0.15, end: float = LARGEST_EFFECTIVE_SIZE, ramp: float = 1.0) -> Schedule:
    """Return a straight line from `start` to `end` over the first `ramp` of training, then `end`.

    Raises:
        ValueError: if an effective size is outside (0, 1 - 1/e], or `ramp` outside (0, 1].
    """
    first, last = checked_effective_size(start), checked_effective_size(end)
    if not 0.0 < ramp <= 1.0:
        raise ValueError(f"ramp must be the share of training in (0, 1]; got {ramp}.")
    return lambda progress: first + (last - first) * min(1.0, checked_progress(progress) / ramp)


def linear_then_uniform(*, start: float = 0.15, end: float = LARGEST_EFFECTIVE_SIZE, ramp: float = 0.5) -> Schedule:
    """Return `linear` to `end` over the first `ramp` of training, then the largest size, at which draws are uniform.

    With the default end it is continuous: the ramp of the authors' library.

    Raises:
        ValueError: as of `linear`.
    """
    rising = linear(start=start, end=end, ramp=ramp)
    return lambda progress: rising(progress) if checked_progress(progress) < ramp else LARGEST_EFFECTIVE_SIZE


def fixed(*, start: float = 0.5, end: float | None = None) -> Schedule:
    """Return the constant `start`; `end` belongs to the common signature and is not used."""
    value = checked_effective_size(start)
    # Times zero: a wrong progress must raise here as in the other schedules.
    return lambda progress: value + 0.0 * checked_progress(progress)


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "cosine": cosine,
    "linear": linear,
    "linear_then_uniform": linear_then_uniform,
    "fixed": fixed,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptiveGrowth:
    """Broaden the draw when the metric that trainers report stops improving."""

    metric: str = "loss"
    """Name of the metric, as reported in events of kind "metric". Lower is better for loss, higher for all others."""
    increment: float = 0.05
    """Growth of the effective size when the metric is flat, a share of N above 0."""
    patience: int = 4
    """Reports in a row without a gain after which the metric is flat, 1 or more."""
    min_gain: float = 0.01
    """Least gain over the best report so far that counts, relative to it, 0 or more."""

    def __post_init__(self) -> None:
        if not self.increment > 0.0 or self.patience < 1 or not self.min_gain >= 0.0:
            raise ValueError(
                "increment must be above 0, patience 1 or more, min_gain 0 or more; got "
                f"{self.increment}, {self.patience}, {self.min_gain}."
            )

    def effective_size(self, reports: Sequence[float], *, start: float, end: float) -> float:
        """Return the effective size after these reports, oldest first; one that is not finite is no gain."""
        size, best, flat = start, None, 0
        # The gain is relative to the best report's magnitude, for a metric may be negative.
        sign = -1.0 if self.metric == "loss" else 1.0
        for value in reports:
            if math.isfinite(value) and (best is None or sign * (value - best) > self.min_gain * abs(best)):
                best, flat = value, 0
                continue
            flat += 1
            if flat == self.patience:
                size, flat = min(end, size + self.increment), 0
        return size


def checked_progress(progress: float) -> float:
    """Return progress, at most 1, for the last window may overhang; ValueError when negative or not a number."""
    if not progress >= 0.0:
        raise ValueError(f"progress must be the share of training done, 0 or more; got {progress}.")
    return min(1.0, float(progress))
