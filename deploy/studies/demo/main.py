"""The main job from end to end, on real images.

1. Write and index shards. 2. Features, clusters, prototypes. 3. Start Ray, the selection service, two loaders, and
train a small MAE whose effective dataset size anneals, while a script changes, scales and kills things. 4. Train the
same model on uniform draws. 5. Compare the encoders by nearest neighbours. 6. Write the report.
"""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deploy.api.client import RunClient
from deploy.console import say, working
from deploy.launch.evaluation import build_probe
from deploy.launch.launch import launch, launch_in_process
from deploy.observe.training_bar import training_bar
from deploy.runs.config import DataConfig, RunConfig
from deploy.runs.recipes import tiny
from deploy.runs.rundir import RunDir, RunError
from deploy.studies.demo.control import ControlScript
from deploy.studies.demo.data import DemoData, prepare
from deploy.studies.demo.report import Arm, DemoFigures, write_demo_report
from deploy.studies.prototypes import job
from deploy.studies.prototypes.report import write_score_pictures
from loader import ShardIndex
from trainer import TrainResult

if TYPE_CHECKING:
    from loader.fleet.actors import FleetClient
    from scoring import SelectionPort

EPOCHS_BETWEEN_EVALUATIONS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoResult:
    """Result of the demo."""

    run: RunDir
    """The run with the curriculum; everything else lies below it."""
    figures: DemoFigures
    report: Path


def run_demo(out: Path, *, images: Path | None, shards: tuple[str, ...], steps: int | None, seed: int) -> DemoResult:
    """Run the demo on the digits, or on `images` (a folder of class folders) or `shards` (existing tars).

    An earlier demo in `out` is moved aside. `steps` are optimizer steps of each arm, None for the named run's own.

    Raises:
        RunError: another demo drives this directory.
    """
    started = time.monotonic()
    run = RunDir(out)
    with run.held():
        _move_aside(run)
        try:
            data = prepare(out / "data", images=images, shards=shards)
        except BaseException:  # half a data set would be taken for a whole one by the next demo
            shutil.rmtree(run.path)
            raise
        config = _run_config(data, steps=steps, seed=seed)
        size, prototypes = config.train.model.image_size, Path(config.data.prototypes or "")
        scored = job.score(data.index, prototypes, size=size, seed=seed)
        title = "Prototypes of the demo's images"
        write_score_pictures(run.report, data.index, scored.prototypes, size=size, title=title)
        count = len(scored.prototypes.distance)
        say(f"  {count:,} images, {scored.prototypes.num_clusters} clusters (K by the Davies-Bouldin index)")
        curriculum, times_drawn = _train_with_curriculum(config, run)
        uniform = _train_uniform(config, RunDir(out / "uniform"))
        with working("comparing with raw pixels, writing the report"):
            figures = DemoFigures(
                arms=(curriculum, uniform),
                pixels=build_probe(config).pixels() if config.evaluate_every else None,
                samples=len(ShardIndex.load(data.index)),
                wall_s=time.monotonic() - started,
            )
            report = write_demo_report(run, figures, config=config, times_drawn=times_drawn)
    return DemoResult(run=run, figures=figures, report=report)


def _run_config(data: DemoData, *, steps: int | None, seed: int) -> RunConfig:
    index = ShardIndex.load(data.index)
    config = tiny(
        DataConfig(
            index=str(data.index.resolve()),
            prototypes=str(data.index.resolve().parent / "prototypes.parquet"),
            test_index=None if data.test_index is None else str(data.test_index.resolve()),
        )
    )
    epoch_steps = max(1, round(len(index) / config.train.global_batch))
    # Warm-up shrinks with a shorter demo; otherwise few steps would be left at the full rate.
    total_steps = steps or config.train.total_steps
    train = replace(
        config.train, seed=seed, total_steps=total_steps, warmup_steps=total_steps // 12, epoch_steps=epoch_steps
    )
    labelled = bool((index.label >= 0).any())
    every = EPOCHS_BETWEEN_EVALUATIONS * epoch_steps if labelled else 0  # neighbours are judged by labels
    return replace(config, name="demo", train=train, evaluate_every=every)


def _train_with_curriculum(config: RunConfig, run: RunDir) -> tuple[Arm, NDArray[np.uint32]]:
    """Train under Ray, with the control script beside it."""
    num_windows = math.ceil(config.train.total_steps / config.train.window_steps)
    scripts: list[ControlScript] = []

    # `launch` calls this when the API and the actors answer; its result keeps the draw counts after the run.
    def beside(selection: SelectionPort, fleet: FleetClient) -> ControlScript:
        scripts.append(ControlScript(RunClient.attach(run), selection, fleet, num_windows=num_windows))
        return scripts[0]

    say("starting Ray: selection service, 2 loaders, trainer")
    began = time.monotonic()
    with training_bar(run, total_steps=config.train.total_steps, description="training, curriculum"):
        _require_finished(launch(config, run, beside=beside))
    return Arm(name="curriculum", run=run, seconds=time.monotonic() - began), scripts[0].times_drawn


def _train_uniform(config: RunConfig, run: RunDir) -> Arm:
    """Train the same model for the same number of steps on uniform draws, without Ray."""
    uniform = replace(config, name="demo-uniform", curriculum=replace(config.curriculum, policy="uniform"))
    began = time.monotonic()
    with training_bar(run, total_steps=config.train.total_steps, description="training, uniform"):
        _require_finished(launch_in_process(uniform, run))
    return Arm(name="uniform", run=run, seconds=time.monotonic() - began)


def _require_finished(result: TrainResult) -> None:
    if result.reason != "finished":
        raise RunError(f"the demo was stopped at step {result.step}; start it again.")


def _move_aside(run: RunDir) -> None:
    """Move the files of an earlier demo to a folder named after the time that it began."""
    if not run.config.is_file():
        return
    stamp = datetime.fromtimestamp(run.config.stat().st_mtime).strftime("%Y%m%d-%H%M%S")
    aside = run.path.with_name(f"{run.path.name}-{stamp}")
    aside.mkdir()
    for child in run.path.iterdir():
        if child.name != ".lock":  # this process holds it
            child.rename(aside / child.name)
    say(f"an earlier demo was moved to {aside}")
