"""Trains and evaluates the arms of a study: one after the other in this process, or several at a time as Ray tasks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
    """Its name."""
    seed: int
    """Its seed."""
    metrics: dict[str, float]
    """Of the final encoder."""
    curve: dict[str, list[list[float]]]
    """Metric -> [step, value] pairs of the training curve."""
    steps: int
    """Optimizer steps."""
    seconds: float
    """Of the last session that trained it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One arm with one seed, still to be run."""

    config: RunConfig
    """How it trains."""
    folder: Path
    """Of its run, absolute; on a cluster, one that every node reaches."""
    arm: str
    """Its name."""
    seed: int
    """Its seed."""
    size: int
    """Side of the evaluation crop, in pixels."""

    @property
    def result(self) -> Path:
        """The file that says that it is done."""
        return self.folder / "outcome.json"

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.arm}, seed {self.seed}"


Queue = Callable[[Sequence[Task]], None]
"""Runs tasks; each leaves its outcome in its folder."""


def in_turn(tasks: Sequence[Task]) -> None:
    """Run one task after the other, here."""
    for number, task in enumerate(tasks, start=1):
        title = f"[{number}/{len(tasks)}] {task.title}"
        with training_bar(RunDir(task.folder), total_steps=task.config.train.total_steps, description=title):
            train_and_measure(task)


def side_by_side(workers: int) -> Queue:
    """A queue of Ray tasks of one CPU each, on the cluster that RAY_ADDRESS names or on one of this machine's own.

    Args:
        workers: tasks at a time. A small model trains fastest with one thread an arm and an arm a core.
    """

    def queue(tasks: Sequence[Task]) -> None:
        if not tasks:
            return
        with over_ray(workers) as run, _steps_bar(tasks):
            for number, _ in run(train_and_measure, tasks):
                say(f"{tasks[number].title}: done")

    return queue


def train_and_measure(task: Task) -> None:
    """Train an arm, or go on with it, and write what it measured.

    Raises:
        RunError: a person stopped it.
    """
    run, began = RunDir(task.folder), time.monotonic()
    with run.held():
        ended = launch_in_process(task.config, run)
    if ended.reason != "finished":
        raise RunError(f"{task.title} was stopped at step {ended.step}; the same command goes on from there.")
    outcome = Outcome(
        arm=task.arm,
        seed=task.seed,
        metrics=_measure(replace(task.config.data, prototypes=None), task.size)(run.path),
        curve=_curve(run),
        steps=ended.step,
        seconds=time.monotonic() - began,
    )
    write_json(task.result, asdict(outcome))


@lru_cache(maxsize=1)
def _measure(data: DataConfig, size: int) -> Measure:
    """The arms of a process share the decoded images."""
    return Measure(data, size=size)


@contextmanager
def _steps_bar(tasks: Sequence[Task]) -> Iterator[None]:
    """Steps of all tasks together, while they run elsewhere."""
    total = sum(task.config.train.total_steps for task in tasks)
    with progress_bar(f"training {len(tasks)} arms, steps") as advance:

        def show() -> None:
            advance(sum(_steps(RunDir(task.folder)) for task in tasks), total)

        with periodic(show, every_s=POLL_S, name="steps-bar", trouble="the arms' progress could not be read"):
            yield


def _steps(run: RunDir) -> int:
    return max((int(line["step"]) for line in run.metric_lines(tail=4)), default=0)


def _curve(run: RunDir) -> dict[str, list[list[float]]]:
    lines = run.metric_lines()
    names = sorted({name for line in lines for name in line if name.startswith("nn_")} | {"loss"})
    return {name: [[line["step"], line[name]] for line in lines if line.get(name) is not None] for name in names}
