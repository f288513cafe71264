"""A progress bar for training that runs in other processes: it reads the run's metrics as they are written."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from deploy.console import ERR
from deploy.rundir import RunDir

POLL_S = 0.5


@contextmanager
def training_bar(run: RunDir, *, total_steps: int, description: str = "training") -> Iterator[None]:
    """Show step, loss and images/s until the block ends.

    Args:
        run: its metrics.jsonl is read.
        total_steps: length of the bar.
        description: what is being trained.
    """
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<34}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[facts]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    over = threading.Event()
    with Progress(*columns, console=ERR) as progress:
        task = progress.add_task(description, total=total_steps, facts="")

        def follow() -> None:
            while not over.wait(POLL_S):
                _show()

        def _show() -> None:
            lines = [line for line in run.metric_lines(tail=4) if "loss" in line]
            if lines:
                last = lines[-1]
                progress.update(
                    task, completed=last["step"], facts=f"loss {last['loss']:.4f}  {last['images_per_s']:,.0f} images/s"
                )

        thread = threading.Thread(target=follow, name="training-bar", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            _show()
