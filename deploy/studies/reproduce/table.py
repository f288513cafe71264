"""From outcomes to the table: means with their spread, the paper's figures, and which directions hold."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from deploy.studies.reproduce.claims import Arm, Claim, Expectation
from deploy.studies.reproduce.queue import Outcome
from trainer.evaluate.rauc import common_curve, rauc


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One metric of one arm over the seeds."""

    values: tuple[float, ...]
    """By seed."""

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds; None for one seed, and where one has no figure."""
        known = all(math.isfinite(value) for value in self.values)
        return statistics.stdev(self.values) if known and len(self.values) > 1 else None

    def __str__(self) -> str:
        spread = "" if self.spread is None else f" +- {100 * self.spread:.1f}"
        return f"{100 * self.mean:.1f}{spread}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Whether a direction of the paper came out here."""

    expected: Expectation
    """What the paper found."""
    differences: tuple[float, ...]
    """Ours by seed: the arm minus what it should beat; not a number where that cannot be said."""

    @property
    def holds(self) -> str:
        """In words: "yes" when it does in every seed, "no" when in none, else in how many; "level" is judged as one."""
        unknown = sum(math.isnan(difference) for difference in self.differences)
        if unknown:
            told = tuple(difference for difference in self.differences if not math.isnan(difference))
            known = f"{replace(self, differences=told).holds}, " if told else ""
            return f"{known}undefined in {unknown} of {len(self.differences)} seeds"
        count = len(self.differences)
        if self.expected.or_level:
            error = statistics.stdev(self.differences) / math.sqrt(count) if count > 1 else 0.0
            return "yes" if statistics.fmean(self.differences) >= -error else "no"
        held = sum(difference > 0 for difference in self.differences)
        return {count: "yes", 0: "no"}.get(held, f"in {held} of {count} seeds")

    def __str__(self) -> str:
        than = self.expected.than if isinstance(self.expected.than, str) else f"{self.expected.than:g}"
        verb = "is at least level with" if self.expected.or_level else "beats"
        return f"{self.expected.arm} {verb} {than} on {self.expected.metric}"

    @property
    def by_seed(self) -> str:
        """The differences, for people."""
        return ", ".join("undefined" if math.isnan(one) else f"{one:+.3f}" for one in self.differences)


Cells = Mapping[str, Mapping[str, Cell]]
"""Arm -> metric -> cell."""


def cells(outcomes: Sequence[Outcome], *, baseline: str | None) -> dict[str, dict[str, Cell]]:
    """The metrics of each arm over its seeds.

    Args:
        outcomes: what was measured.
        baseline: the arm that RAUC is taken against, by seed; None for claims without it.
    """
    by_arm: dict[str, list[Outcome]] = {}
    for outcome in sorted(outcomes, key=lambda one: one.seed):
        by_arm.setdefault(outcome.arm, []).append(outcome)
    found = {arm: over_seeds([one.metrics for one in several]) for arm, several in by_arm.items()}
    if baseline is not None:
        for arm, several in by_arm.items():
            pairs = zip(several, by_arm[baseline], strict=True)
            found[arm]["rauc"] = Cell(values=tuple(_rauc(ours, base) for ours, base in pairs))
    return found


def over_seeds(metrics: Sequence[Mapping[str, float]]) -> dict[str, Cell]:
    """The metrics that several seeds have."""
    return {name: Cell(values=tuple(one[name] for one in metrics)) for name in metrics[0]}


def verdicts(claim: Claim, found: Cells) -> list[Verdict]:
    """The claim's directions, as they came out."""
    results = []
    for expected in claim.expected:
        ours = found[expected.arm][expected.metric].values
        other = (
            found[expected.than][expected.metric].values
            if isinstance(expected.than, str)
            else (expected.than,) * len(ours)
        )
        pairs = zip(ours, other, strict=True)
        results.append(Verdict(expected=expected, differences=tuple(mine - theirs for mine, theirs in pairs)))
    return results


def rows(claim: Claim, arms: Sequence[Arm], found: Cells) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    """(columns, rows) for people: each metric with its spread, the paper's figure beside it where it has one."""
    papers = sorted({metric for arm in arms for metric in arm.paper})
    columns = ("arm", *claim.metrics, *(f"paper: {metric}" for metric in papers))
    lines: list[tuple[object, ...]] = [
        (
            arm.name,
            *(_shown(found[arm.name].get(metric), metric) for metric in claim.metrics),
            *(arm.paper.get(metric) for metric in papers),
        )
        for arm in arms
        if arm.name in found
    ]
    return columns, lines


def _rauc(ours: Outcome, base: Outcome, *, metric: str = "nn_cls") -> float:
    """Of two training curves; not a number where the baseline does not rise, so that there is nothing to compare."""
    steps, curve, reference = common_curve(_points(ours, metric), _points(base, metric))
    try:
        return rauc(steps, reference, curve)
    except ValueError:
        return math.nan


def _points(outcome: Outcome, metric: str) -> list[tuple[float, float]]:
    return [(point[0], point[1]) for point in outcome.curve[metric]]


def _shown(cell: Cell | None, metric: str) -> str:
    if cell is None:
        return "-"
    if metric != "rauc":
        return str(cell)
    if not math.isfinite(cell.mean):
        return ", ".join("undefined" if math.isnan(value) else f"{value:.2f}" for value in cell.values)
    return f"{cell.mean:.2f}" + ("" if cell.spread is None else f" +- {cell.spread:.2f}")
