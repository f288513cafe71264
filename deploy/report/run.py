"""The page of a run, `report/report.html`: its curves, and pictures of the method at the start, middle and end.

It is written anew at each of the three. Everything comes from the run directory, so any run can have one.
"""

from __future__ import annotations

import re
from pathlib import Path

from deploy.report import plots
from deploy.report.figures import figure_sections, figures
from deploy.report.report import Section, write_report
from deploy.runs.config import RunConfig
from deploy.runs.rundir import RunDir
from trainer.record.pictures import heterogeneity_plot, save_whole

PICTURE = re.compile(r"step-(\d+)-([a-z_]+)\.png")
TITLES = {
    "reconstructions": "Reconstructions: the image, what the encoder sees, what is predicted",
    "masks": "Learned masks: keep-probabilities and what they leave visible (easy at first, hard at the end)",
    "predictor": "The mask predictor: predicted loss by patch, and the image without the hardest",
    "affinity": "Masked tokens: how they spread their similarity over the visible ones, by layer",
}
CURVES = {
    "loss.png": ("training loss", ("loss", "loss_masker")),
    "accuracy.png": ("1-NN accuracy of the frozen encoder", ("nn_cls", "nn_mean")),
    "curriculum.png": (
        "the masking network: share it keeps, and the factor from partner to adversary",
        ("keep_mean", "curriculum"),
    ),
}


def write_run_report(run: RunDir, config: RunConfig) -> Path:
    """Draw the curves of a run, write its page, and return the page's path."""
    run.report.mkdir(parents=True, exist_ok=True)
    # Figures, curves and pictures come from the files and never from the live run: a finished run gets the same page.
    sections = [*figure_sections(run, config), Section(title="Curves", pictures=_curves(run))]
    for name, title in TITLES.items():
        found = step_pictures(run.report, name)
        if found:
            sections.append(Section(title=title, pictures=found))
    train = config.train
    lead = f"{train.method}, {train.total_steps:,} steps of {train.global_batch} images, run {config.name}."
    data = {"run": config.name, "method": train.method, **figures(run)}
    return write_report(run.report, title=config.name, lead=lead, sections=sections, data=data)


def step_pictures(folder: Path, name: str | None = None) -> dict[Path, str]:
    """Return the trainer's pictures in order of step, with captions; only those of one kind when a name is given."""
    found = {}
    for path in sorted(folder.glob("step-*.png")):
        parts = PICTURE.fullmatch(path.name)
        if parts and name in (None, parts[2]):
            found[path] = f"{parts[2]} after {int(parts[1]):,} steps"
    return found


def _curves(run: RunDir) -> dict[Path, str]:
    """Draw the curves whose metrics the run has logged; return file -> caption."""
    lines = run.metric_lines()
    pictures: dict[Path, str] = {}
    for file, (caption, names) in CURVES.items():
        series = {}
        for name in names:
            points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
            if points:
                series[name] = ([step for step, _ in points], [value for _, value in points])
        if series:
            plots.curves(run.report / file, series=series, x="optimizer step", y=caption.split(":")[0])
            pictures[run.report / file] = caption
    # Only methods with masked-token losses log it, one value for each layer.
    heterogeneity = heterogeneity_plot(run.path / "metrics.jsonl") if lines else None
    if heterogeneity is not None:
        save_whole(heterogeneity, run.report / "heterogeneity.png", dpi=plots.DPI)
        pictures[run.report / "heterogeneity.png"] = "heterogeneity of masked tokens by layer"
    return pictures
