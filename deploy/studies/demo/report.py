"""The demo's results: its table, its pictures, report.json and report.html."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from deploy.console import table
from deploy.observe.run_log import describe_entry, knob_history, log_entries
from deploy.report import plots
from deploy.report.report import Section, write_report
from deploy.report.run import step_pictures
from deploy.runs.config import RunConfig
from deploy.runs.rundir import RunDir
from scoring import Prototypes, solve_temperature

COLUMNS = ("trained on", "1-NN, CLS token", "1-NN, mean of patches", "last loss", "seconds")
LOG_LINES = 100
CAPTIONS = {
    "effective_size.png": "effective dataset size and temperature by step; the plateau is the value held by hand",
    "loss.png": "training loss of both arms (they see different images, so the losses are not comparable)",
    "nn_accuracy.png": "cosine 1-NN accuracy of the frozen encoder by epoch",
    "times_drawn.png": "number of draws of each image under the curriculum",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One trained model."""

    name: str
    """Draws that it was trained on: curriculum or uniform."""
    run: RunDir
    seconds: float
    """Wall time of its training, with the start of its actors."""

    def curve(self, metric: str) -> tuple[list[float], list[float]]:
        """Return (steps, values) of one metric."""
        lines = [line for line in self.run.metric_lines() if line.get(metric) is not None]
        return [line["step"] for line in lines], [line[metric] for line in lines]

    def last(self, metric: str) -> float | None:
        """Return the last value of a metric, None if it was never measured."""
        values = self.curve(metric)[1]
        return values[-1] if values else None


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoFigures:
    """What the demo measured."""

    arms: tuple[Arm, ...]
    """The curriculum first."""
    pixels: float | None
    """1-NN accuracy of the raw pixels; None without labels."""
    samples: int
    wall_s: float
    """Seconds from the start of the demo to the last evaluation."""

    def rows(self) -> list[tuple[object, ...]]:
        names = ("nn_cls", "nn_mean", "loss")
        trained = [(arm.name, *(arm.last(name) for name in names), arm.seconds) for arm in self.arms]
        return [*trained, ("nothing (raw pixels)", self.pixels, None, None, None)]

    def view(self) -> Table:
        return table("nearest-neighbour accuracy of the frozen encoder", COLUMNS, self.rows())

    def data(self) -> dict[str, Any]:
        names = ("nn_cls", "nn_mean", "loss", "seconds")
        arms = {str(name): dict(zip(names, values, strict=True)) for name, *values in self.rows()[:-1]}
        return {"arms": arms, "pixels_nn": self.pixels, "samples": self.samples, "wall_s": self.wall_s}


def write_demo_report(run: RunDir, figures: DemoFigures, *, config: RunConfig, times_drawn: NDArray[np.uint32]) -> Path:
    """Draw the pictures, write report.json and report.html into the curriculum's run; return the page's path.

    `times_drawn` is the number of draws of each sample under the curriculum, uint32[N].
    """
    run.report.mkdir(exist_ok=True)
    pictures = _pictures(run.report, figures.arms, config=config, times_drawn=times_drawn)
    entries = log_entries(run, limit=LOG_LINES, changes_only=True)
    log_rows = [
        (entry["author"], describe_entry(entry), entry["window"], entry["step"], entry["reason"]) for entry in entries
    ]
    sections = [
        Section(title="Nearest-neighbour accuracy", columns=COLUMNS, rows=figures.rows()),
        Section(title="What the model saw", pictures=pictures),
        Section(title="What the model predicts", pictures=step_pictures(run.report)),
        Section(title="Who changed what", columns=("author", "what", "window", "step", "why"), rows=log_rows),
        Section(
            title="Prototypes",
            pictures={run.report / "prototypes.png": "clusters by row, nearest to the prototype first"},
        ),
    ]
    images, train = figures.samples, config.train
    steps = f"{train.total_steps:,} steps of {train.global_batch}"
    lead = f"{images:,} training images, {steps}, {figures.wall_s:.0f} s in all."
    data = figures.data() | {"log": entries}
    return write_report(run.report, title="Tempera demo", lead=lead, sections=sections, data=data)


def _pictures(
    folder: Path, arms: Sequence[Arm], *, config: RunConfig, times_drawn: NDArray[np.uint32]
) -> dict[Path, str]:
    steps = config.train.total_steps
    schedule = config.curriculum.schedule_by_progress()
    distance = Prototypes.load(config.data.prototypes or "").distance
    initial = schedule(0.0), solve_temperature(distance, schedule(0.0))
    # The log has only changes: the values before the first come from the schedule.
    knob = knob_history(arms[0].run, initial=initial, window_steps=config.train.window_steps, total_steps=steps)
    pictures = {folder / name: caption for name, caption in CAPTIONS.items()}
    sizes, losses, accuracy, histogram = pictures  # in the order of CAPTIONS
    scheduled = [schedule(step / steps) for step in knob.steps]
    plots.effective_size(
        sizes, steps=knob.steps, used=knob.effective_size, scheduled=scheduled, temperature=knob.temperature
    )
    plots.curves(losses, series={arm.name: arm.curve("loss") for arm in arms}, x="optimizer step", y="loss")
    plots.times_drawn(histogram, counts=times_drawn, label="curriculum")
    epoch_steps, curves = config.train.epoch_steps, {}
    for arm in arms:
        for token in ("mean", "cls"):
            at, values = arm.curve(f"nn_{token}")
            curves[f"{arm.name}, {token}"] = [step / epoch_steps for step in at], values
    if not any(xs for xs, _ in curves.values()):  # images without labels have no accuracy
        return {path: caption for path, caption in pictures.items() if path != accuracy}
    plots.curves(accuracy, series=curves, x="epoch (draws / images)", y="1-NN accuracy")
    return pictures
