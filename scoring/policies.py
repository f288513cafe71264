"""Policies: what is known about samples -> how much each weighs in the draw.

A policy is a function of `TableInputs` returning one weight a row. It must treat rows alone: a weight may depend on its
own row and on the table-wide facts, never on its neighbours in the call, because tables are weighed in blocks. Names
joined by "*" multiply. Adding a policy is a function and a line in `POLICIES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class TableInputs:
    """Some rows of the sample table, and the facts about the whole of it."""

    num_rows: int
    """Rows to weigh."""
    temperature: float
    """Softmax temperature in force, positive; infinity is uniform."""
    distance: NDArray[np.float32] | None = None
    """Prototype distance of the rows; None when the run has none."""
    distance_range: tuple[float, float] = (0.0, 1.0)
    """Smallest and largest distance of the whole table."""

    def distances(self) -> Float64:
        """Distances of the rows as float64; ValueError when the run has none."""
        if self.distance is None:
            raise ValueError("this policy needs prototype distances; this run has none. Run `tempera score` first.")
        return self.distance.astype(np.float64)


Policy = Callable[[TableInputs], Float64]


def uniform(inputs: TableInputs) -> Float64:
    """Every sample alike. Drawn as a new permutation each epoch: without replacement, the usual training order."""
    return np.ones(inputs.num_rows)


def uniform_replacement(inputs: TableInputs) -> Float64:
    """Every sample alike, drawn with replacement: the limit of an infinite temperature."""
    return np.ones(inputs.num_rows)


def prototypical(inputs: TableInputs) -> Float64:
    """Near prototypes first: exp(-d / tau) (Lin et al., CVPR 2025, Eq. 4)."""
    return np.asarray(np.exp((inputs.distance_range[0] - inputs.distances()) / inputs.temperature))


def hard(inputs: TableInputs) -> Float64:
    """Far from prototypes first: exp(+d / tau), the adapted baseline of Sorscher et al., 2022."""
    return np.asarray(np.exp((inputs.distances() - inputs.distance_range[1]) / inputs.temperature))


POLICIES: dict[str, Policy] = {
    "uniform": uniform,
    "uniform_replacement": uniform_replacement,
    "prototypical": prototypical,
    "hard": hard,
}

DIRECTION = {"prototypical": "prototypical", "hard": "hard"}
"""Policies that a temperature steers, and the direction in which it solves."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyPlan:
    """A policy name taken apart."""

    name: str
    """As given."""
    factors: tuple[str, ...]
    """Names whose weights are multiplied."""

    @property
    def permuted(self) -> bool:
        """Whether it is drawn without replacement."""
        return self.factors == ("uniform",)

    @property
    def direction(self) -> str | None:
        """Direction of the softmax factor, None without one: then no temperature applies."""
        return next((DIRECTION[name] for name in self.factors if name in DIRECTION), None)

    def weigh(self, inputs: TableInputs) -> Float64:
        """Product of the factors' weights."""
        weights = POLICIES[self.factors[0]](inputs)
        for name in self.factors[1:]:
            weights = weights * POLICIES[name](inputs)
        return weights


def parse_policy(name: str) -> PolicyPlan:
    """Take a policy name apart.

    Raises:
        ValueError: for an unknown name, or two factors that a temperature steers.
    """
    factors = tuple(part.strip() for part in str(name).split("*"))
    for factor in factors:
        if factor not in POLICIES:
            raise ValueError(f"policy must be one of {', '.join(POLICIES)}, or some joined by '*'; got {name!r}.")
    if sum(factor in DIRECTION for factor in factors) > 1:
        raise ValueError(f"policy may hold one of {', '.join(DIRECTION)}, which share a temperature; got {name!r}.")
    return PolicyPlan(name="*".join(factors), factors=factors)
