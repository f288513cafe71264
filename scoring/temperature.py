"""Temperature: how sharply the draw prefers near samples, and the effective data set size that follows from it.

A draw takes sample i with P_i = softmax(-d_i / tau) over distances d in [0, 1]. The effective size is the expected
share of distinct samples in N draws with replacement. Both are float64: float32 misses the effective size by 0.3 points
and makes samples unreachable. The inverse is a bracketed root on log tau. Above a million samples it works on a
histogram of the distances, each bin at the mean of its members, so its error is second order in the bin width.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float64 = NDArray[np.float64]

SIGN = {"prototypical": -1.0, "hard": 1.0}
"""Sign of the distance in the exponent: near prototypes first, or far from them first (Sorscher et al., 2022)."""

LARGEST_EFFECTIVE_SIZE = 1.0 - math.exp(-1.0)
"""Limit of the effective size as tau and N grow (Lin et al., CVPR 2025, Eq. 6)."""

EXACT_LIMIT = 1_000_000
"""Up to here every sample is evaluated; above, a histogram."""

HISTOGRAM_BINS = 1 << 16
COARSE_BINS = 1 << 10
"""Bins of the rough copy on which a solution is begun."""
COLDEST, HOTTEST = 1e-12, 1e12


def sampling_probabilities(distance: ArrayLike, temperature: float, direction: str = "prototypical") -> Float64:
    """Return the probability of each sample in one draw (Lin et al., CVPR 2025, Eq. 4).

    Args:
        distance: [N], finite; min-max normalised distances lie in [0, 1].
        temperature: positive; infinity gives uniform draws.
        direction: "prototypical" (near first) or "hard" (far first).

    Returns:
        float64 [N], summing to 1.

    Raises:
        ValueError: for an empty or non-finite distance, a temperature that is not positive, an unknown direction.
    """
    values, tau = checked_distance(distance).astype(np.float64), checked_temperature(temperature)
    sign, nearest = _sign_and_nearest(values, direction)
    weights = np.exp(sign * (values - nearest) / tau)  # the largest is 1, so nothing overflows
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def effective_size(distance: ArrayLike, temperature: float, direction: str = "prototypical") -> float:
    """Return the expected share of distinct samples in N draws with replacement (Lin et al., CVPR 2025, Eq. 5 / N).

    Args:
        distance: [N], finite.
        temperature: positive; infinity gives uniform draws.
        direction: "prototypical" (near first) or "hard" (far first).

    Returns:
        A share in [1/N, 1 - (1 - 1/N)^N], the upper end for uniform draws.

    Raises:
        ValueError: as of `sampling_probabilities`.
    """
    probability = sampling_probabilities(distance, temperature, direction)
    return expected_distinct(probability, np.ones_like(probability), len(probability)) / len(probability)


def solve_temperature(distance: ArrayLike, effective_size: float, direction: str = "prototypical") -> float:
    """Return the temperature that gives an effective size; the inverse of `effective_size`.

    Args:
        distance: [N], finite.
        effective_size: share of N, in (0, 1 - 1/e].
        direction: "prototypical" or "hard".

    Returns:
        A positive temperature; infinity where only uniform draws are broad enough.

    Raises:
        ValueError: if the size is out of range, or below the least that these distances can give.
    """
    return DistanceProfile(distance).solve(effective_size, direction)


def expected_distinct(probability: Float64, counts: Float64, num_draws: int) -> float:
    """Return the sum of counts * (1 - (1 - p)^draws), without cancellation: 1 - (1 - p)^n = -expm1(n * log1p(-p)).

    Args:
        probability: [n] probability in one draw of each sample of a group; rounding may put one above 1.
        counts: [n] samples of each group.
        num_draws: draws, 1 or more.
    """
    with np.errstate(divide="ignore"):  # p = 1 gives log1p(-1) = -inf, whose expm1 is -1: the sample is certain
        return float(-(counts * np.expm1(num_draws * np.log1p(-np.minimum(probability, 1.0)))).sum())


class DistanceProfile:
    """The distances of a table, grouped for repeated solving: one value a sample, or one a histogram bin."""

    def __init__(
        self,
        distance: ArrayLike,
        *,
        counts: Float64 | None = None,
        num_draws: int | None = None,
        exact_limit: int = EXACT_LIMIT,
    ) -> None:
        """Group distances, or take given groups.

        Args:
            distance: [N] distances, or the mean of each group.
            counts: members of each group, if they are grouped already.
            num_draws: draws, and the size that shares are of, where these distances are of a part of the data.
            exact_limit: number of samples up to which each is its own group.
        """
        values = checked_distance(distance)
        if counts is None and len(values) > exact_limit and values.min() < values.max():
            sums, counts = distance_bins(values, float(values.min()), float(values.max()))
            values, counts = sums[counts > 0] / counts[counts > 0], counts[counts > 0]
        self._values = values.astype(np.float64)
        self._counts = np.ones(len(values)) if counts is None else counts
        self.num_samples = int(self._counts.sum())
        self.num_draws = num_draws or self.num_samples
        self._limits: dict[str, tuple[float, float]] = {}
        self._rough = self._coarsened() if len(values) > 4 * COARSE_BINS else None

    def effective_size(self, temperature: float, direction: str = "prototypical") -> float:
        """Return the effective size of the whole table as a share of N."""
        return self._share(checked_temperature(temperature), direction)

    def solve(self, effective_size: float, direction: str = "prototypical") -> float:
        """Return the temperature of an effective size; see `solve_temperature`."""
        wanted = checked_effective_size(effective_size)
        if direction not in self._limits:
            self._limits[direction] = self._share(COLDEST, direction), self._share(HOTTEST, direction)
        coldest, hottest = self._limits[direction]
        if wanted < coldest:
            raise ValueError(
                f"effective_size must be at least {coldest:.6g}, the share that the nearest of these "
                f"{self.num_samples} samples give alone; got {wanted:.6g}. Ask for a larger share."
            )
        if wanted >= hottest:
            return math.inf
        # A rough copy in 1,024 bins gives a start so near that the exact groups need a few passes only.
        guess, step = 0.1, 1.5
        if self._rough is not None:
            step = 1e-5
            if self._rough._share(COLDEST, direction) < wanted < self._rough._share(HOTTEST, direction):
                guess = self._rough.solve(wanted, direction)
        start = math.log(guess)
        return math.exp(_root(lambda log_tau: self._share(math.exp(log_tau), direction) - wanted, start, step))

    def _coarsened(self) -> DistanceProfile | None:
        """Return a copy in COARSE_BINS bins; None where all distances are equal."""
        low, high = float(self._values.min()), float(self._values.max())
        if low == high:
            return None
        bins = np.minimum(((self._values - low) * (COARSE_BINS / (high - low))).astype(np.int64), COARSE_BINS - 1)
        counts = np.bincount(bins, weights=self._counts, minlength=COARSE_BINS).astype(np.float64)
        sums = np.bincount(bins, weights=self._counts * self._values, minlength=COARSE_BINS)
        used = counts > 0
        return DistanceProfile(sums[used] / counts[used], counts=counts[used], num_draws=self.num_draws)

    def _share(self, temperature: float, direction: str) -> float:
        """Return the effective size at a temperature."""
        # As `expected_distinct`, but in one buffer: a solution takes some thirty passes over all groups.
        sign, nearest = _sign_and_nearest(self._values, direction)
        buffer = self._values - nearest
        buffer *= sign / temperature
        np.exp(buffer, out=buffer)
        buffer *= -1.0 / float(self._counts @ buffer)
        np.maximum(buffer, -1.0, out=buffer)
        with np.errstate(divide="ignore"):
            np.log1p(buffer, out=buffer)
        buffer *= self.num_draws
        np.expm1(buffer, out=buffer)
        return -float(self._counts @ buffer) / self.num_draws


def checked_distance(distance: ArrayLike) -> NDArray[np.floating]:
    """Return the distances as a one-dimensional float array.

    Raises:
        ValueError: if there are none, or one is not finite.
    """
    values = np.asarray(distance)
    if values.dtype not in (np.float32, np.float64):
        values = values.astype(np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"distance must be one value a sample, at least one; got shape {values.shape}.")
    if not math.isfinite(float(values.min())) or not math.isfinite(float(values.max())):
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ValueError(f"distance must be finite; got {values[row]} for sample {row}. Score the data again.")
    return values


def checked_temperature(temperature: float) -> float:
    """Return the temperature as a float; ValueError unless it is positive."""
    if not float(temperature) > 0.0:
        raise ValueError(f"temperature must be positive; got {temperature}. The paper's range is 0.07 to 0.6.")
    return float(temperature)


def checked_effective_size(effective_size: float) -> float:
    """Return the effective size as a float; ValueError outside (0, 1 - 1/e]."""
    if not 0.0 < float(effective_size) <= LARGEST_EFFECTIVE_SIZE:
        raise ValueError(
            f"effective_size must be in (0, {LARGEST_EFFECTIVE_SIZE:.6f}], the share of distinct samples that draws "
            f"with replacement can reach (1 - 1/e); got {effective_size}. Try 0.2 to 0.61."
        )
    return float(effective_size)


def _sign_and_nearest(values: Float64, direction: str) -> tuple[float, float]:
    """Return the sign of the exponent, and the distance that weighs most."""
    if direction not in SIGN:
        raise ValueError(f"direction must be one of {', '.join(SIGN)}; got {direction!r}.")
    sign = SIGN[direction]
    return sign, float(values.min() if sign < 0 else values.max())


def distance_bins(distance: NDArray[np.floating], low: float, high: float) -> tuple[Float64, Float64]:
    """Return sum and count of the distances in each of HISTOGRAM_BINS bins of [low, high]."""
    counts, sums = np.zeros(HISTOGRAM_BINS), np.zeros(HISTOGRAM_BINS)
    scale = HISTOGRAM_BINS / (high - low)
    for start in range(0, len(distance), EXACT_LIMIT):  # in parts, so that no float64 copy of the table is made
        part = distance[start : start + EXACT_LIMIT].astype(np.float64)
        bins = np.minimum(((part - low) * scale).astype(np.int32), HISTOGRAM_BINS - 1)
        counts += np.bincount(bins, minlength=HISTOGRAM_BINS)
        sums += np.bincount(bins, weights=part, minlength=HISTOGRAM_BINS)
    return sums, counts


def _root(function: Callable[[float], float], start: float, step: float, tolerance: float = 1e-12) -> float:
    """Find the root of an increasing function: a bracket grows from `start`, then false position (Illinois)."""
    left = right = start
    f_left = f_right = function(start)
    while f_left > 0:
        left, right, f_right = left - step, left, f_left
        f_left, step = function(left), 2 * step
    while f_right < 0:
        left, f_left, right = right, f_right, right + step
        f_right, step = function(right), 2 * step
    # Illinois: the value at an end that stays twice is halved, or false position would creep up from one side.
    side = 0
    while right - left > tolerance * max(1.0, abs(left)) and f_left != 0.0 and f_right != 0.0:
        middle = (left * f_right - right * f_left) / (f_right - f_left)
        if not left < middle < right:
            break
        f_middle = function(middle)
        if abs(f_middle) < tolerance * tolerance:
            return middle
        if f_middle > 0:
            right, f_right = middle, f_middle
            f_left, side = (f_left / 2 if side > 0 else f_left), 1
        else:
            left, f_left = middle, f_middle
            f_right, side = (f_right / 2 if side < 0 else f_right), -1
    return left if abs(f_left) < abs(f_right) else right
