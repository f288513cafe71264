"""Named runs: functions that return a RunConfig; the command line overrides fields.

Each takes the data it is run on; `RUNS` lists them by the name that `tempera train NAME` knows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from deploy.config import CurriculumConfig, DataConfig, FleetConfig, RunConfig, TrainersConfig
from loader import Transform
from trainer import TrainConfig, model_size

IMAGENET_SAMPLES = 1_281_167
MAE_BATCH = 4096


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
        total_steps=330,
        global_batch=128,
        base_lr=3e-3,
        warmup_steps=28,
        window_steps=8,
        log_every=4,
        checkpoint_every=80,
    )
    return RunConfig(name="tiny", data=_small(data), train=train, trainers=TrainersConfig(cpus_per_worker=2.0))


def mae_b_800(data: DataConfig) -> RunConfig:
    """MAE ViT-B/16, 800 epochs of ImageNet-1K, uniform sampling: the official recipe (METHODS section 1)."""
    return _mae_b(data, name="mae_b_800", epochs=800, policy="uniform")


def mae_b_200(data: DataConfig) -> RunConfig:
    """MAE ViT-B/16, 200 epochs of ImageNet-1K, uniform sampling: the baseline of the curriculum papers."""
    return _mae_b(data, name="mae_b_200", epochs=200, policy="uniform")


def prototypes_mae_b_200(data: DataConfig) -> RunConfig:
    """The prototype curriculum on MAE ViT-B/16, 200 epochs (Lin et al., CVPR 2025; METHODS section 8)."""
    return _mae_b(data, name="prototypes_mae_b_200", epochs=200, policy="prototypical")


def prototypes_mae_b_800(data: DataConfig) -> RunConfig:
    """The prototype curriculum on MAE ViT-B/16, 800 epochs."""
    return _mae_b(data, name="prototypes_mae_b_800", epochs=800, policy="prototypical")


def _mae_b(data: DataConfig, *, name: str, epochs: int, policy: str) -> RunConfig:
    epoch_steps = IMAGENET_SAMPLES // MAE_BATCH
    train = TrainConfig(
        model=model_size("vit_b"),
        total_steps=epochs * epoch_steps,
        epoch_steps=epoch_steps,
        global_batch=MAE_BATCH,
        base_lr=1.5e-4,
        warmup_steps=40 * epoch_steps,
        checkpoint_every=10 * epoch_steps,
        log_every=20,
    )
    return RunConfig(
        name=name,
        data=data,
        train=train,
        curriculum=CurriculumConfig(policy=policy, start=0.20, end=0.614),
        fleet=FleetConfig(loaders=8, threads=4, cpus_per_loader=4.0, cache_bytes=8 * 2**30),
        trainers=TrainersConfig(workers=8, use_gpu=True),
    )


def _small(data: DataConfig) -> DataConfig:
    return replace(data, transform=Transform(size=32, scale=(0.5, 1.0), flip=False))


RUNS: dict[str, Callable[[DataConfig], RunConfig]] = {
    run.__name__: run for run in (debug, tiny, mae_b_200, mae_b_800, prototypes_mae_b_200, prototypes_mae_b_800)
}
