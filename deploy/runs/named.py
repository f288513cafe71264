"""Named runs: functions that return a RunConfig; the command line overrides fields.

Each takes the data it is run on; `RUNS` lists them, the papers' recipes included, by the name that `tempera train NAME`
knows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from deploy.runs.config import ADAPTIVE, DataConfig, FleetConfig, RunConfig, TrainersConfig
from deploy.runs.recipes import RECIPES
from loader import Transform
from trainer import TrainConfig, model_size


def debug(data: DataConfig) -> RunConfig:
    """Forty steps of a tiny MAE: does everything start, log, checkpoint and stop?"""
    train = TrainConfig(
        model=model_size("tiny"),
        total_steps=40,
        global_batch=32,
        warmup_steps=4,
        window_steps=8,
        log_every=1,
        checkpoint_every=20,
    )
    return RunConfig(
        name="debug",
        data=_small(data),
        train=train,
        fleet=FleetConfig(loaders=1),
    )


def tiny(data: DataConfig) -> RunConfig:
    """A small MAE on images of 32 pixels, for machines without a GPU: the demo's run."""
    train = TrainConfig(
        model=model_size("tiny", width=96, depth=3, heads=3),
        total_steps=480,
        global_batch=128,
        base_lr=3e-3,
        warmup_steps=40,
        window_steps=8,
        log_every=4,
        checkpoint_every=80,
    )
    return RunConfig(name="tiny", data=_small(data), train=train, trainers=TrainersConfig(cpus_per_worker=2.0))


def tiny_adaptive(data: DataConfig) -> RunConfig:
    """`tiny`, whose effective dataset size grows when the loss has stopped falling, instead of by progress."""
    run = tiny(data)
    return replace(run, name="tiny_adaptive", curriculum=replace(run.curriculum, schedule=ADAPTIVE))


def _small(data: DataConfig) -> DataConfig:
    return replace(data, transform=Transform(size=32, scale=(0.5, 1.0), flip=False))


RUNS: dict[str, Callable[[DataConfig], RunConfig]] = {
    "debug": debug,
    "tiny": tiny,
    "tiny_adaptive": tiny_adaptive,
    **RECIPES,
}
