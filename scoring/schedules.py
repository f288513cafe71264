"""Schedules: what the effective data set size should be, as a function of training progress in [0, 1].

A schedule is built from its parameters and is then a pure function, so every rank computes the same value for a window.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from scoring.temperature import LARGEST_EFFECTIVE_SIZE, checked_effective_size

Schedule = Callable[[float], float]


def cosine(*, start: float = 0.2, end: float = 0.61) -> Schedule:
    """Half a cosine from `start` to `end` (Lin et al., CVPR 2025: temperatures .07 to .6 are sizes .20 to .614)."""
    first, last = checked_effective_size(start), checked_effective_size(end)
    return lambda progress: first + (last - first) * 0.5 * (1.0 - math.cos(math.pi * checked_progress(progress)))


def linear(*, start: float = 0.15, end: float = LARGEST_EFFECTIVE_SIZE, ramp: float = 1.0) -> Schedule:
    """Straight line from `start` to `end` over the first `ramp` of training, then `end`.

    With the default end this is the ramp of the authors' library: after it, draws are uniform.
    """
    first, last = checked_effective_size(start), checked_effective_size(end)
    if not 0.0 < ramp <= 1.0:
        raise ValueError(f"ramp must be the share of training in (0, 1]; got {ramp}.")
    return lambda progress: first + (last - first) * min(1.0, checked_progress(progress) / ramp)


def fixed(*, size: float = 0.5) -> Schedule:
    """The same effective size throughout."""
    value = checked_effective_size(size)
    return lambda progress: checked_progress(progress) * 0.0 + value


SCHEDULES: dict[str, Callable[..., Schedule]] = {"cosine": cosine, "linear": linear, "fixed": fixed}


def checked_progress(progress: float) -> float:
    """Progress clipped to 1 from above (the last window may overhang); ValueError when negative or not a number."""
    if not progress >= 0.0:
        raise ValueError(f"progress must be the share of training done, 0 or more; got {progress}.")
    return min(1.0, float(progress))
