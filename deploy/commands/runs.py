"""`tempera train`, `resume`, `status`, `watch`: start a run, continue it, show it."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from deploy.commands.combined import AS_NAMED, AnyRun, Combination, Settings, UnderRay
from deploy.console import OUT, Answer, say, table, working
from deploy.runs.rundir import RunDir, RunError

if TYPE_CHECKING:
    from deploy.runs.config import RunConfig


def train(
    name: Positional[str],
    *,
    index: Path,
    prototypes: Path | None = None,
    test_index: Path | None = None,
    out: Path | None = None,
    combined: Combination = AS_NAMED,
    set: Settings = (),
    ray: UnderRay = True,
    dry_run: bool = False,
) -> Answer:
    """Start a named run.

    Args:
        name: debug, tiny, or a recipe such as prototypes_mae_b_200 or pass_mae_cifar_200; a wrong name lists all.
        index: index.parquet of the training images.
        prototypes: prototypes.parquet; beside the index by default, if it is there.
        test_index: index.parquet of held-out labelled images for the nearest-neighbour curve.
        out: run directory; runs/NAME by default.
        dry_run: only show the plan: steps, windows, memory, images/s needed and available, PASS rounds.
    """
    from deploy.runs.config import DataConfig
    from deploy.runs.overrides import override
    from deploy.runs.recipes import RUNS
    from trainer.config import choose

    beside = index.parent / "prototypes.parquet"
    found = prototypes or (beside if beside.is_file() else None)
    # Absolute paths: a resumed run may be started in another folder, and Ray's workers always are.
    data = DataConfig(
        index=str(index.resolve()),
        prototypes=str(found.resolve()) if found else None,
        test_index=str(test_index.resolve()) if test_index else None,
    )
    config = override(choose(name, RUNS, "a run")(data), (*combined.settings(), *set))
    if dry_run:
        return plan_answer(config)
    return _run(config, RunDir(out or Path("runs") / config.name), ray=ray)


def plan_answer(config: RunConfig, **more: Any) -> Answer:
    """Return the plan of a run, from its configuration and a short probe of this machine, with `more` facts added."""
    from deploy.launch.plan import make_plan, plan_view

    with working("measuring this machine for a few seconds"):
        plan = make_plan(config) | more
    return Answer(data=plan, view=plan_view(plan))


def resume(path: Positional[Path], *, ray: UnderRay = True) -> Answer:
    """Continue a run from its newest checkpoint, with the batch after the last one that the checkpoint saw.

    Args:
        path: the run's directory.
    """
    from deploy.runs.config import load_config

    run = RunDir(path).require()
    return _run(load_config(run.config), run, ray=ray)


def status(*, run: AnyRun = None) -> Answer:
    """Show the progress of a run and the values in force."""
    from deploy.commands.watch import facts_of, status_view

    with working("reading the run"), facts_of(run) as read:
        facts = read()
    return Answer(data=facts, view=status_view(facts))


def watch(*, run: AnyRun = None, every: float = 1.0, once: bool = False) -> None:
    """Watch a run in the terminal, live.

    Args:
        every: seconds between two updates.
        once: draw once and exit.
    """
    from rich.live import Live

    from deploy.commands.watch import facts_of, frame

    with facts_of(run) as read:
        facts = read()
        with Live(frame(facts), console=OUT, auto_refresh=False, screen=not once and OUT.is_terminal) as live:
            while facts["alive"] and not once:
                time.sleep(every)
                try:
                    facts = read()
                except RunError:  # the run has ended meanwhile
                    break
                live.update(frame(facts), refresh=True)
    if not once:
        # The alternate screen is gone with its last drawing: print the end, which the run's files now tell.
        with facts_of(run) as read:
            OUT.print(frame(read()))


def _run(config: RunConfig, run: RunDir, *, ray: bool) -> Answer:
    from deploy.launch.launch import launch, launch_in_process
    from deploy.observe.training_bar import training_bar

    say(f"run {config.name} in {run.path}; `tempera watch --run {run.path}` shows it live")
    with run.held(), training_bar(run, total_steps=config.train.total_steps):
        result = launch(config, run) if ray else launch_in_process(config, run)
    rows = [("step", result.step), ("reason", result.reason), ("checkpoint", result.checkpoint)]
    rows += [(name, value) for name, value in result.metrics.items() if name != "step"]
    return Answer(data={"run": str(run.path), **asdict(result)}, view=table(config.name, ("", ""), rows))
