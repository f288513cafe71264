"""A progress bar for training in other processes: it reads the run's metrics as they are written.

A job without a terminal writes lines to its log instead (`deploy.observe.progress_lines`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.progress import Progress, TaskID, TextColumn

from deploy.console import ERR, bars
from deploy.observe import progress_lines
from deploy.observe.periodic import periodic
from deploy.runs.rundir import RunDir

POLL_S = 0.5
LINE_EVERY_S = 2.0
THREAD, TROUBLE = "training-bar", "the run's progress could not be read"


@contextmanager
def training_bar(run: RunDir, *, total_steps: int, description: str = "training") -> Iterator[None]:
    """Show step, loss and images/s until the block ends: a bar, or lines where TEMPERA_PROGRESS asks for them."""
    if os.environ.get(progress_lines.SWITCH) == progress_lines.LINES:
        written = -1

        def write() -> None:
            nonlocal written
            newest = _newest(run)
            if newest and newest["step"] != written:  # a run that is paused logs no new step
                written = newest["step"]
                facts = {name: newest[name] for name in ("step", "loss", "images_per_s")}
                ERR.file.write(progress_lines.encode({**facts, "total_steps": total_steps}) + "\n")
                ERR.file.flush()

        with periodic(write, every_s=LINE_EVERY_S, name=THREAD, trouble=TROUBLE):
            yield
        return
    with training_progress() as progress:
        task = progress.add_task(description, total=total_steps, facts="")
        with periodic(
            lambda: show_progress(progress, task, _newest(run)), every_s=POLL_S, name=THREAD, trouble=TROUBLE
        ):
            yield


def training_progress() -> Progress:
    """Return the progress display of a training bar."""
    return bars(TextColumn("{task.fields[facts]}"))


def show_progress(progress: Progress, task: TaskID, facts: dict[str, Any] | None) -> None:
    """Move the bar of `training_progress` to a logged step; None leaves it where it is.

    `facts` are the step's "step", "loss" and "images_per_s", and "total_steps" where the length is known from them.
    """
    if facts:
        shown = f"loss {facts['loss']:.4f}  {facts['images_per_s']:,.0f} images/s"
        progress.update(task, completed=facts["step"], total=facts.get("total_steps"), facts=shown)


def _newest(run: RunDir) -> dict[str, Any] | None:
    """Return the last logged step; None before the first."""
    # Lines without a loss are evaluations and pauses, which stand between the steps.
    lines = [line for line in run.metric_lines(tail=4) if "loss" in line]
    return lines[-1] if lines else None
