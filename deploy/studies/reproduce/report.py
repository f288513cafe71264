"""From outcomes to a claim's files: means with their spread, the paper's figures, and whether each direction holds.

1. `cells` averages each metric of each arm over its seeds; `verdicts` compares the arms as the claim expects.
2. `write_claim` writes report.json for scripts; report.html and report.md with tables and curves for people.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from deploy.report import plots
from deploy.report.report import Section, write_report
from deploy.studies.reproduce.claims import START, Arm, Claim, Expectation
from deploy.studies.reproduce.measure import Floor
from deploy.studies.reproduce.plan import Plan
from deploy.studies.reproduce.queue import Outcome
from trainer.evaluate.rauc import common_curve, rauc

RAUC_METRIC = "nn_cls"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One metric of one arm over the seeds."""

    values: tuple[float, ...]
    """The metric of each seed."""

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds; None for one seed, or where a seed has no figure."""
        known = all(math.isfinite(value) for value in self.values)
        return statistics.stdev(self.values) if known and len(self.values) > 1 else None

    def __str__(self) -> str:
        spread = "" if self.spread is None else f" +- {100 * self.spread:.1f}"
        return f"{100 * self.mean:.1f}{spread}"

    def data(self) -> dict[str, Any]:
        """Return the cell as JSON, which has no NaN: it becomes null."""
        values = [value if math.isfinite(value) else None for value in self.values]
        return {"mean": self.mean if math.isfinite(self.mean) else None, "sd": self.spread, "by_seed": values}


Cells = Mapping[str, Mapping[str, Cell]]
"""Arm -> metric -> cell."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Whether a direction of the paper came out here."""

    expected: Expectation
    differences: tuple[float, ...]
    """The arm minus its rival for each seed; NaN where it is undefined."""

    @property
    def holds(self) -> str:
        """The answer: "yes" for every seed, "no" for none, else their number; "level" is judged over all seeds."""
        unknown = sum(math.isnan(difference) for difference in self.differences)
        if unknown:
            defined = tuple(difference for difference in self.differences if not math.isnan(difference))
            known = f"{replace(self, differences=defined).holds}, " if defined else ""
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

    def data(self) -> dict[str, Any]:
        """Return the verdict as JSON, an undefined difference as null."""
        differences = [one if math.isfinite(one) else None for one in self.differences]
        return {"direction": str(self), "holds": self.holds, "difference_by_seed": differences}

    @property
    def by_seed(self) -> str:
        return ", ".join("undefined" if math.isnan(one) else f"{one:+.3f}" for one in self.differences)


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenClaim:
    """A claim's results: report.html, the table for people with one row an arm, and the contents of report.json."""

    page: Path
    columns: tuple[str, ...]
    rows: list[tuple[object, ...]]
    judged: list[Verdict]
    data: dict[str, Any]


def write_claim(folder: Path, *, plan: Plan, claim: Claim, outcomes: Sequence[Outcome], floor: Floor) -> WrittenClaim:
    """Judge the outcomes of all arms and seeds, draw the curves, and write report.html, report.json and report.md."""
    found, start = cells(outcomes, baseline=claim.baseline), over_seeds(floor.untrained)
    judged = verdicts(claim, found)
    columns, lines = rows(claim, (*claim.arms, START), found | {START.name: start})
    scale = plan.scale
    lead = (
        f"{claim.source}. Here: {scale.samples:,} images, {scale.epochs} epochs of batch {scale.global_batch}, model "
        f"{scale.size}, {plan.seeds} seeds; accuracies in per cent, mean +- standard deviation over the seeds; raw "
        f"pixels have {100 * floor.pixels:.1f}."
    )
    held = [(str(one), one.holds, one.by_seed) for one in judged]
    sections = [
        Section(title="Arms", columns=columns, rows=lines),
        Section(title="Does it hold here?", columns=("direction", "holds", "difference by seed"), rows=held),
        Section(title="Training", pictures=_draw_curves(folder, claim.arms, outcomes)),
    ]
    data = {
        "claim": plan.claim,
        "title": claim.title,
        "source": claim.source,
        "plan": asdict(plan),
        "pixels_nn": floor.pixels,
        "before_training": {name: cell.data() for name, cell in start.items()},
        "arms": {arm: {name: cell.data() for name, cell in metrics.items()} for arm, metrics in found.items()},
        "directions": [one.data() for one in judged],
    }
    page = write_report(folder, title=claim.title, lead=lead, sections=sections, data=data)
    (folder / "report.md").write_text(_markdown(claim.title, lead, sections))
    return WrittenClaim(page=page, columns=columns, rows=lines, judged=judged, data=data)


def cells(outcomes: Sequence[Outcome], *, baseline: str | None) -> dict[str, dict[str, Cell]]:
    """Return the metrics of each arm over its seeds, with a baseline also RAUC, seed by seed (METHODS section 6)."""
    by_arm: dict[str, list[Outcome]] = {}
    for outcome in sorted(outcomes, key=lambda one: one.seed):
        by_arm.setdefault(outcome.arm, []).append(outcome)
    found = {arm: over_seeds([one.metrics for one in several]) for arm, several in by_arm.items()}
    if baseline is not None:
        for arm, several in by_arm.items():
            areas = []
            for ours, base in zip(several, by_arm[baseline], strict=True):
                points = [[(step, value) for step, value in one.curve[RAUC_METRIC]] for one in (ours, base)]
                steps, curve, reference = common_curve(*points)
                try:
                    areas.append(rauc(steps, reference, curve))
                except ValueError:  # the baseline does not rise: there is nothing to compare
                    areas.append(math.nan)
            found[arm]["rauc"] = Cell(values=tuple(areas))
    return found


def over_seeds(metrics: Sequence[Mapping[str, float]]) -> dict[str, Cell]:
    """Return a cell for each metric that the seeds have."""
    return {name: Cell(values=tuple(one[name] for one in metrics)) for name in metrics[0]}


def verdicts(claim: Claim, found: Cells) -> list[Verdict]:
    """Return the claim's directions, judged."""
    results = []
    for expected in claim.expected:
        ours = found[expected.arm][expected.metric].values
        than = expected.than
        rival = found[than][expected.metric].values if isinstance(than, str) else (than,) * len(ours)
        # Paired by seed: the arms of a seed start from the same weights, so what the seed decides for both cancels.
        differences = tuple(mine - theirs for mine, theirs in zip(ours, rival, strict=True))
        results.append(Verdict(expected=expected, differences=differences))
    return results


def rows(claim: Claim, arms: Sequence[Arm], found: Cells) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    """Return (columns, rows) for people: each metric with its spread, and the paper's figure where there is one."""
    papers = sorted({metric for arm in arms for metric in arm.paper})
    columns = ("arm", *claim.metrics, *(f"paper: {metric}" for metric in papers))
    lines: list[tuple[object, ...]] = []
    for arm in arms:
        if here := found.get(arm.name):
            measured = (_shown(here.get(metric), metric) for metric in claim.metrics)
            lines.append((arm.name, *measured, *(arm.paper.get(metric) for metric in papers)))
    return columns, lines


def _shown(cell: Cell | None, metric: str) -> str:
    """Return a cell for people: accuracies in per cent, RAUC as a ratio."""
    if cell is None:
        return "-"
    if metric != "rauc":
        return str(cell)
    if not math.isfinite(cell.mean):
        return ", ".join("undefined" if math.isnan(value) else f"{value:.2f}" for value in cell.values)
    return f"{cell.mean:.2f}" + ("" if cell.spread is None else f" +- {cell.spread:.2f}")


def _markdown(title: str, lead: str, sections: Sequence[Section]) -> str:
    """Return the page as Markdown, for a repository."""
    lines = [f"# {title}", "", lead]
    for section in sections:
        if section.rows:
            lines += ["", "| " + " | ".join(section.columns) + " |", "|" + " --- |" * len(section.columns)]
            lines += [
                "| " + " | ".join("" if cell is None else str(cell) for cell in row) + " |" for row in section.rows
            ]
        lines += ["", *(f"![{caption}]({path.name})" for path, caption in section.pictures.items())]
    # Of several empty lines in a row one is kept.
    return "\n".join(line for number, line in enumerate(lines) if line or lines[number - 1 : number] != [""]) + "\n"


def _draw_curves(folder: Path, arms: Sequence[Arm], outcomes: Sequence[Outcome]) -> dict[Path, str]:
    """Draw each curve that was measured, the mean over the seeds that have the step; return picture -> caption."""
    captions = {
        "loss": "training loss; mean over the seeds",
        "nn_cls": "1-NN accuracy, CLS token, on a sample of the test split while training; mean over the seeds",
        "nn_mean": "1-NN accuracy, mean of the patch tokens, likewise",
    }
    pictures = {}
    for metric, caption in captions.items():
        series: dict[str, tuple[list[float], list[float]]] = {}
        # By step, because a resumed arm may lack some: each mean is over the seeds that have the step.
        for arm in arms:
            by_step: dict[float, list[float]] = {}
            for outcome in outcomes:
                for step, value in outcome.curve.get(metric, ()) if outcome.arm == arm.name else ():
                    by_step.setdefault(step, []).append(value)
            steps = sorted(by_step)
            series[arm.name] = steps, [statistics.fmean(by_step[step]) for step in steps]
        if any(steps for steps, _ in series.values()):
            path = folder / f"{metric}.png"
            plots.curves(path, series=series, x="optimizer step", y=metric)
            pictures[path] = caption
    return pictures
