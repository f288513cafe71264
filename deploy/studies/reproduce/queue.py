"""Trains and evaluates the arms of a study: one after the other in this process, or several at a time as Ray tasks.

A task trains its arm (or resumes it), evaluates the final encoder, and writes outcome.json into the arm's folder, which
marks it as done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

from deploy.console import progress_bar, say
from deploy.launch.launch import launch_in_process
from deploy.launch.ray_tasks import over_ray
from deploy.observe.periodic import periodic
from deploy.observe.training_bar import training_bar
from deploy.runs.config import DataConfig, RunConfig
from deploy.runs.rundir import RunDir, RunError, write_json
from deploy.studies.reproduce.measure import Measure

POLL_S = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """One trained and evaluated arm."""

    arm: str
    seed: int
    metrics: dict[str, float]
    curve: dict[str, list[list[float]]]
    """Metric -> [step, value] pairs of the training curve."""
    steps: int
    seconds: float
    """Wall time of the last session that trained it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One arm with one seed, to be run."""

    config: RunConfig
    folder: Path
    """Run directory, absolute; on a cluster, one that every node reaches."""
    arm: str
    seed: int
    size: int
    """Side of the evaluation crop, in pixels."""

    @property
    def result(self) -> Path:
        """The file that marks the task as done."""
        return self.folder / "outcome.json"

    @property
    def title(self) -> str:
        return f"{self.arm}, seed {self.seed}"


Queue = Callable[[Sequence[Task]], None]
"""Runs tasks; each leaves its outcome in its folder."""


def in_turn(tasks: Sequence[Task]) -> None:
    """Run one task after the other in this process."""
    for number, task in enumerate(tasks, start=1):
        title = f"[{number}/{len(tasks)}] {task.title}"
        with training_bar(RunDir(task.folder), total_steps=task.config.train.total_steps, description=title):
            train_and_measure(task)


def side_by_side(workers: int) -> Queue:
    """Return a queue of Ray tasks, `workers` at a time, on the cluster that RAY_ADDRESS names or one started here.

    Each task has one CPU: a small model trains fastest with one thread an arm and one arm a core.
    """

    def queue(tasks: Sequence[Task]) -> None:
        if not tasks:
            return
        total = sum(task.config.train.total_steps for task in tasks)
        with over_ray(workers) as run, progress_bar(f"training {len(tasks)} arms, steps") as advance:

            def show() -> None:
                newest = (RunDir(task.folder).metric_lines(tail=4) for task in tasks)
                advance(sum(max((int(line["step"]) for line in lines), default=0) for lines in newest), total)

            with periodic(show, every_s=POLL_S, name="steps-bar", trouble="the arms' progress could not be read"):
                for number, _ in run(train_and_measure, tasks):
                    say(f"{tasks[number].title}: done")

    return queue


def train_and_measure(task: Task) -> None:
    """Train an arm, or resume it, and write its outcome.

    Raises:
        RunError: a person stopped it.
    """
    run, began = RunDir(task.folder), time.monotonic()
    with run.held():
        ended = launch_in_process(task.config, run)
    if ended.reason != "finished":
        raise RunError(f"{task.title} was stopped at step {ended.step}; the same command continues from there.")
    # The outcome holds the curves too: RAUC and the report's pictures are made from it alone.
    lines = run.metric_lines()
    names = sorted({name for line in lines for name in line if name.startswith("nn_")} | {"loss"})
    # Without prototypes, which differ by arm and are not evaluated: the arms then share one Measure.
    measure = _measure(replace(task.config.data, prototypes=None), task.size)
    outcome = Outcome(
        arm=task.arm,
        seed=task.seed,
        metrics=measure(run.path),
        curve={name: [[line["step"], line[name]] for line in lines if line.get(name) is not None] for name in names},
        steps=ended.step,
        seconds=time.monotonic() - began,
    )
    write_json(task.result, asdict(outcome))  # last: this file marks the task as done


@lru_cache(maxsize=1)
def _measure(data: DataConfig, size: int) -> Measure:
    """Return the evaluation that all arms of this process share, so that the images are decoded once."""
    return Measure(data, size=size)
