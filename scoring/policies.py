"""Policies: functions from the columns of the sample table to the weight of each sample in the draw.

A policy is a function of `TableInputs` that returns one weight a row, not negative. A weight may depend on its own row
and on table-wide facts, never on the other rows of the call, for tables are weighed in blocks. Names joined by "*"
multiply. A new policy is a function and a line in `POLICIES`; a user's own is named in the configuration as
"package.module:function".
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

SCORE_KINDS = ("bss", "pass", "loss")
"""Scores that a run may hold: the two of PASS, and a plain training loss."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyOptions:
    """Constants of the policies."""

    importance_kind: str = ""
    """Kind of score that `importance` reads, one of SCORE_KINDS; empty for the kind that the trainer reports."""
    importance_power: float = 1.0
    """Exponent of `importance`, 0 or more; 0 is uniform."""
    importance_floor: float = 0.1
    """Least score that `importance` reads, as a share of the mean score, above 0: no sample becomes unreachable."""

    def __post_init__(self) -> None:
        if self.importance_kind not in ("", *SCORE_KINDS):
            raise ValueError(f"importance_kind must be one of {', '.join(SCORE_KINDS)}; got {self.importance_kind!r}.")
        if not 0.0 <= self.importance_power <= 16.0:
            raise ValueError(f"importance_power must be in [0, 16]; got {self.importance_power}.")
        if not 0.0 < self.importance_floor <= 1.0:
            raise ValueError(f"importance_floor must be a share of the mean in (0, 1]; got {self.importance_floor}.")


class TableInputs(Protocol):
    """Some rows of the sample table, and facts about the whole table."""

    num_rows: int
    """Rows to weigh."""
    num_samples: int
    """Samples of the whole table."""
    temperature: float
    """Softmax temperature in force, positive; infinity is uniform."""
    options: PolicyOptions
    """Constants of the run."""
    distance_range: tuple[float, float]
    """Smallest and largest distance of the whole table."""

    def sample_ids(self) -> NDArray[np.int64]:
        """Ids of the rows."""

    def distances(self) -> Float64:
        """Prototype distances of the rows; ValueError when the run has none."""

    def scores(self, kind: str) -> Float64:
        """Latest scores of the rows, NaN where none was reported."""

    def mean_score(self, kind: str) -> float:
        """Mean over all scored samples; 1 when there are none."""

    def selected(self, kind: str) -> NDArray[np.bool_]:
        """Whether the rows are in the subset of the last selection round; all are before the first."""


Policy = Callable[[TableInputs], Float64]


def uniform(inputs: TableInputs) -> Float64:
    """Weigh all samples alike. They are drawn as a new permutation each epoch, the usual order of training."""
    return np.ones(inputs.num_rows)


def uniform_replacement(inputs: TableInputs) -> Float64:
    """Weigh all samples alike; drawn with replacement, the limit of an infinite temperature."""
    return np.ones(inputs.num_rows)


def prototypical(inputs: TableInputs) -> Float64:
    """Prefer samples near prototypes: exp(-d / tau) (Lin et al., CVPR 2025, Eq. 4)."""
    return _softmax_weights(inputs.distance_range[0], inputs.distances(), inputs.temperature)


def hard(inputs: TableInputs) -> Float64:
    """Prefer samples far from prototypes: exp(+d / tau), the adapted baseline of Sorscher et al., 2022."""
    return _softmax_weights(inputs.distance_range[1], inputs.distances(), -inputs.temperature)


def importance(inputs: TableInputs) -> Float64:
    """Weigh by a power of the latest score, floored: max(s / mean(s), floor)^power.

    A sample without a score counts as average: s = mean(s).
    """
    options = inputs.options
    # The floor keeps every sample reachable; relative to the mean, its meaning stays while losses fall.
    relative = inputs.scores(options.importance_kind) / inputs.mean_score(options.importance_kind)
    return np.asarray(
        np.maximum(np.nan_to_num(relative, nan=1.0), options.importance_floor) ** options.importance_power
    )


def pass_subset(inputs: TableInputs) -> Float64:
    """Weigh alike the subset that the last round kept by PASS score (PASS, Eq. 8); all before the first round."""
    return inputs.selected("pass").astype(np.float64)


def bss_subset(inputs: TableInputs) -> Float64:
    """Weigh alike the subset that the last round kept by BSS score (PASS, Eq. 3); all before the first round."""
    return inputs.selected("bss").astype(np.float64)


POLICIES: dict[str, Policy] = {
    "uniform": uniform,
    "uniform_replacement": uniform_replacement,
    "prototypical": prototypical,
    "hard": hard,
    "importance": importance,
    "pass": pass_subset,
    "bss": bss_subset,
}

DIRECTION = {"prototypical": "prototypical", "hard": "hard"}
"""Policies that have a temperature, and the direction in which it is solved."""

SUBSET_KINDS = ("pass", "bss")
"""Policies that draw from a subset, which a round selects by the score of the same name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyPlan:
    """A policy name, parsed."""

    name: str
    """As given, without spaces."""
    factors: tuple[str, ...]
    """Names whose weights are multiplied."""
    functions: tuple[Policy, ...]
    """Their functions."""
    direction: str | None = None
    """Direction of the softmax factor; None without one: then no temperature applies."""
    subset_kinds: tuple[str, ...] = ()
    """Scores whose subsets restrict the draw."""
    has_user_code: bool = False
    """Whether a factor is a user's policy."""
    reads_scores: bool = False
    """Whether live scores change the weights."""
    reads_rounds: bool = False
    """Whether selection rounds change the weights."""
    reads_distances: bool = False
    """Whether other distances change the weights."""

    def weigh(self, inputs: TableInputs) -> Float64:
        """Return the product of the factors' weights, float64 [num_rows].

        Raises:
            ValueError: if a factor needs distances and the run has none.
        """
        # Starting from the first factor instead of ones saves a pass over the rows.
        weights = self.functions[0](inputs)
        for function in self.functions[1:]:
            weights = weights * function(inputs)
        return np.asarray(weights, dtype=np.float64)


def parse_policy(name: str, user_policies: Iterable[str] = ()) -> PolicyPlan:
    """Parse a policy name.

    Args:
        name: names of POLICIES or of `user_policies`, joined by "*".
        user_policies: import paths that the run's configuration allows.

    Raises:
        ValueError: for an unknown name, two factors that have a temperature, or a path that names no function.
    """
    known = {**dict.fromkeys(user_policies), **POLICIES}
    factors = tuple(part.strip() for part in str(name).split("*"))
    for factor in factors:
        if factor not in known:
            raise ValueError(f"policy must be one of {', '.join(known)}, or some joined by '*'; got {name!r}.")
    directions = [DIRECTION[factor] for factor in factors if factor in DIRECTION]
    if len(directions) > 1:
        raise ValueError(f"policy may hold one of {', '.join(DIRECTION)}, which share a temperature; got {name!r}.")
    subset_kinds = tuple(factor for factor in factors if factor in SUBSET_KINDS)
    # A user's function may read everything: nothing shows what it does with its inputs.
    has_user_code = any(factor not in POLICIES for factor in factors)
    return PolicyPlan(
        name="*".join(factors),
        factors=factors,
        functions=tuple(POLICIES.get(factor) or load_policy(factor) for factor in factors),
        direction=directions[0] if directions else None,
        subset_kinds=subset_kinds,
        has_user_code=has_user_code,
        reads_scores="importance" in factors or has_user_code,
        reads_rounds=bool(subset_kinds) or has_user_code,
        reads_distances=bool(directions) or has_user_code,
    )


def load_policy(path: str) -> Policy:
    """Import the function at "package.module:function"; ValueError if there is none."""
    module, separator, attribute = path.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute) if separator else None
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"a user policy must be importable; {path!r} is not ({error}).") from error
    if not callable(function):
        raise ValueError(f"a user policy must be a function given as package.module:function; got {path!r}.")
    return function  # type: ignore[no-any-return]


def _softmax_weights(best: float, distance: Float64, temperature: float) -> Float64:
    """Return exp((best - d) / tau), which is 1 for the best sample of the table, so that nothing overflows.

    The distances, float64 [n], are overwritten. A negative tau prefers the far ones; `best` is then the largest.
    """
    # In place: this runs over every sample of the table when it is weighed.
    np.subtract(best, distance, out=distance)
    np.divide(distance, temperature, out=distance)
    return np.exp(distance, out=distance)
