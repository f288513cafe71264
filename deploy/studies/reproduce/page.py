"""A claim's files: report.json for scripts; report.html and report.md with table, directions and curves for people."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deploy.report import plots
from deploy.report.report import Section, write_report
from deploy.studies.reproduce.claims import START, Arm, Claim
from deploy.studies.reproduce.measure import Floor
from deploy.studies.reproduce.plan import Plan
from deploy.studies.reproduce.queue import Outcome
from deploy.studies.reproduce.table import Cell, Cells, Verdict, cells, over_seeds, rows, verdicts


def table_data(plan: Plan, claim: Claim, found: Cells, judged: Sequence[Verdict], floor: Floor) -> dict[str, Any]:
    """The study as JSON.

    Args:
        plan: what was run.
        claim: what was compared.
        found: metrics by arm.
        judged: the directions.
        floor: what the same images give without training.
    """
    directions = [
        {
            "direction": str(one),
            "holds": one.holds,
            "difference_by_seed": [x if math.isfinite(x) else None for x in one.differences],
        }
        for one in judged
    ]
    return {
        "claim": plan.claim,
        "title": claim.title,
        "source": claim.source,
        "plan": asdict(plan),
        "pixels_nn": floor.pixels,
        "before_training": _metrics(over_seeds(floor.untrained)),
        "arms": {arm: _metrics(metrics) for arm, metrics in found.items()},
        "directions": directions,
    }


def _metrics(metrics: Mapping[str, Cell]) -> dict[str, Any]:
    return {name: _cell(cell) for name, cell in metrics.items()}


def _cell(cell: Cell) -> dict[str, Any]:
    """A cell as JSON, where what is not a number is null."""
    values = [value if math.isfinite(value) else None for value in cell.values]
    return {"mean": cell.mean if math.isfinite(cell.mean) else None, "sd": cell.spread, "by_seed": values}


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """A claim's results and where they lie."""

    claim: Claim
    """What was compared."""
    folder: Path
    """Of its files."""
    page: Path
    """report.html."""
    columns: tuple[str, ...]
    """Of the table for people."""
    rows: list[tuple[object, ...]]
    """One an arm."""
    judged: list[Verdict]
    """The directions."""
    data: dict[str, Any]
    """What report.json holds."""


def write_claim(folder: Path, *, plan: Plan, claim: Claim, outcomes: Sequence[Outcome], floor: Floor) -> Written:
    """Judge the outcomes, draw the curves, and write report.html, report.json and report.md.

    Args:
        folder: where to.
        plan: what was run.
        claim: what was compared.
        outcomes: of all its arms and seeds.
        floor: what the same images give without training.
    """
    found = cells(outcomes, baseline=claim.baseline)
    judged = verdicts(claim, found)
    columns, lines = rows(claim, (*claim.arms, START), found | {START.name: over_seeds(floor.untrained)})
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
        Section(title="Training", pictures=_pictures(folder, claim.arms, outcomes)),
    ]
    data = table_data(plan, claim, found, judged, floor)
    page = write_report(folder, title=claim.title, lead=lead, sections=sections, data=data)
    (folder / "report.md").write_text(_markdown(claim.title, lead, sections))
    return Written(claim=claim, folder=folder, page=page, columns=columns, rows=lines, judged=judged, data=data)


def _markdown(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The tables once more, for a repository."""
    lines = [f"# {title}", "", lead]
    for section in sections:
        if section.rows:
            lines += ["", "| " + " | ".join(section.columns) + " |", "|" + " --- |" * len(section.columns)]
            lines += [
                "| " + " | ".join("" if cell is None else str(cell) for cell in row) + " |" for row in section.rows
            ]
        lines += ["", *(f"![{caption}]({path.name})" for path, caption in section.pictures.items())]
    return "\n".join(line for number, line in enumerate(lines) if line or lines[number - 1 : number] != [""]) + "\n"


def _pictures(folder: Path, arms: Sequence[Arm], outcomes: Sequence[Outcome]) -> dict[Path, str]:
    captions = {
        "loss": "training loss; mean over the seeds",
        "nn_cls": "1-NN accuracy, CLS token, on a sample of the test split while training; mean over the seeds",
        "nn_mean": "1-NN accuracy, mean of the patch tokens, likewise",
    }
    pictures = {}
    for metric, caption in captions.items():
        series = {arm.name: mean_curve(outcomes, arm.name, metric) for arm in arms}
        if not any(steps for steps, _ in series.values()):
            continue
        path = folder / f"{metric}.png"
        plots.curves(path, series=series, x="optimizer step", y=metric)
        pictures[path] = caption
    return pictures


def mean_curve(outcomes: Sequence[Outcome], arm: str, metric: str) -> tuple[list[float], list[float]]:
    """(steps, mean over the seeds that have the step)."""
    by_step: dict[float, list[float]] = {}
    curves: list[Mapping[str, Any]] = [one.curve for one in outcomes if one.arm == arm]
    for curve in curves:
        for step, value in curve.get(metric, ()):
            by_step.setdefault(step, []).append(value)
    steps = sorted(by_step)
    return steps, [statistics.fmean(by_step[step]) for step in steps]
