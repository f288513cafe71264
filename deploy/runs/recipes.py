"""Every named run, one function each: `tempera train NAME` calls the function of that name with the data it is given.

A variant calls the run that it changes. To add a run, write a function under `@run`: the decorator names the run after
the function and enters it into `RUNS`. First come the small runs for any machine, then the papers' runs on ImageNet-1K
(ViT-B, L and H), then the same methods at the size of CIFAR-10.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

from deploy.runs.config import DataConfig, RunConfig, TrainersConfig
from deploy.runs.papers import (
    BSS,
    CIFAR,
    CONMIM_CROP,
    IMAGENET,
    PASS,
    SIMMIM_CROP,
    UNNAMED,
    bootmae,
    clmae,
    conmim,
    drawing,
    mae,
    on_cifar,
    on_imagenet,
    simmim,
    with_cosine,
    with_mto,
)
from loader import FleetConfig, Transform
from scoring.config import ADAPTIVE
from trainer import TrainConfig, model_size

NamedRun = Callable[[DataConfig], RunConfig]
RUNS: dict[str, NamedRun] = {}
"""Named runs by name."""


def run(function: NamedRun) -> NamedRun:
    """Enter a run into `RUNS` under the name of its function, and give the run that name."""
    name = function.__name__

    @functools.wraps(function)
    def named(data: DataConfig) -> RunConfig:
        return replace(function(data), name=name)

    RUNS[name] = named
    return named


@run
def debug(data: DataConfig) -> RunConfig:
    """Train a tiny MAE for forty steps: does everything start, log, checkpoint and stop?"""
    train = TrainConfig(
        model=model_size("tiny"),
        total_steps=40,
        global_batch=32,
        warmup_steps=4,
        window_steps=8,
        log_every=1,
        checkpoint_every=20,
    )
    return RunConfig(name=UNNAMED, data=_small(data), train=train, fleet=FleetConfig(loaders=1))


@run
def tiny(data: DataConfig) -> RunConfig:
    """Train a small MAE on images of 32 pixels, for machines without a GPU: the demo's run."""
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
    return RunConfig(name=UNNAMED, data=_small(data), train=train, trainers=TrainersConfig(cpus_per_worker=2.0))


@run
def tiny_adaptive(data: DataConfig) -> RunConfig:
    """Train `tiny`, whose effective size grows when the loss has stopped falling, instead of by progress."""
    run = tiny(data)
    return replace(run, curriculum=replace(run.curriculum, schedule=ADAPTIVE))


def _small(data: DataConfig) -> DataConfig:
    return replace(data, transform=Transform(size=32, scale=(0.5, 1.0), flip=False))


@run
def mae_b_200(data: DataConfig) -> RunConfig:
    return on_imagenet(data, mae(IMAGENET, 200, size="vit_b"))


@run
def prototypes_mae_b_200(data: DataConfig) -> RunConfig:
    return drawing(mae_b_200(data), "prototypical")


@run
def hard_mae_b_200(data: DataConfig) -> RunConfig:
    return drawing(mae_b_200(data), "hard")


@run
def pass_mae_b_200(data: DataConfig) -> RunConfig:
    return on_imagenet(data, mae(IMAGENET, 200, size="vit_b", pass_=PASS), policy="pass")


@run
def bss_mae_b_200(data: DataConfig) -> RunConfig:
    return on_imagenet(data, mae(IMAGENET, 200, size="vit_b", pass_=BSS), policy="bss")


@run
def pass_prototypes_mae_b_200(data: DataConfig) -> RunConfig:
    return drawing(pass_mae_b_200(data), "pass*prototypical")


@run
def pass_simmim_b_200(data: DataConfig) -> RunConfig:
    return on_imagenet(data, simmim(IMAGENET, 200, size="vit_b", pass_=PASS), policy="pass", crop=SIMMIM_CROP)


@run
def clmae_b_200(data: DataConfig) -> RunConfig:
    return on_imagenet(data, clmae(IMAGENET, 200, size="vit_b"))


@run
def mae_b_400(data: DataConfig) -> RunConfig:
    return on_imagenet(data, mae(IMAGENET, 400, size="vit_b"))


@run
def prototypes_mae_b_400(data: DataConfig) -> RunConfig:
    return drawing(mae_b_400(data), "prototypical")


@run
def mto_mae_b_400(data: DataConfig) -> RunConfig:
    return with_mto(mae_b_400(data))


@run
def mto_simmim_b_400(data: DataConfig) -> RunConfig:
    return with_mto(with_cosine(on_imagenet(data, simmim(IMAGENET, 400, size="vit_b"), crop=SIMMIM_CROP)))


@run
def mto_bootmae_b_400(data: DataConfig) -> RunConfig:
    return with_mto(on_imagenet(data, bootmae(IMAGENET, 400, size="vit_b")))


@run
def mto_conmim_b_400(data: DataConfig) -> RunConfig:
    return with_mto(on_imagenet(data, conmim(IMAGENET, 400, size="vit_b"), crop=CONMIM_CROP))


@run
def mae_b_800(data: DataConfig) -> RunConfig:
    return on_imagenet(data, mae(IMAGENET, 800, size="vit_b"))


@run
def prototypes_mae_b_800(data: DataConfig) -> RunConfig:
    return drawing(mae_b_800(data), "prototypical")


@run
def hard_mae_b_800(data: DataConfig) -> RunConfig:
    return drawing(mae_b_800(data), "hard")


@run
def simmim_b_800(data: DataConfig) -> RunConfig:
    return on_imagenet(data, simmim(IMAGENET, 800, size="vit_b"), crop=SIMMIM_CROP)


@run
def bootmae_b_800(data: DataConfig) -> RunConfig:
    return on_imagenet(data, bootmae(IMAGENET, 800, size="vit_b"))


@run
def conmim_b_800(data: DataConfig) -> RunConfig:
    return on_imagenet(data, conmim(IMAGENET, 800, size="vit_b"), crop=CONMIM_CROP)


@run
def mto_mae_b_800(data: DataConfig) -> RunConfig:
    return with_mto(mae_b_800(data))


@run
def mto_simmim_b_800(data: DataConfig) -> RunConfig:
    return with_mto(with_cosine(simmim_b_800(data)))


@run
def mae_l_800(data: DataConfig) -> RunConfig:
    return on_imagenet(data, mae(IMAGENET, 800, size="vit_l"))


@run
def mto_mae_l_800(data: DataConfig) -> RunConfig:
    return with_mto(mae_l_800(data))


@run
def mae_h_800(data: DataConfig) -> RunConfig:
    return on_imagenet(data, mae(IMAGENET, 800, size="vit_h"))


@run
def mae_cifar_200(data: DataConfig) -> RunConfig:
    return on_cifar(data, mae(CIFAR, 200, size="cifar"))


@run
def prototypes_mae_cifar_200(data: DataConfig) -> RunConfig:
    return drawing(mae_cifar_200(data), "prototypical")


@run
def hard_mae_cifar_200(data: DataConfig) -> RunConfig:
    return drawing(mae_cifar_200(data), "hard")


@run
def pass_mae_cifar_200(data: DataConfig) -> RunConfig:
    return on_cifar(data, mae(CIFAR, 200, size="cifar", pass_=PASS), policy="pass")


@run
def bss_mae_cifar_200(data: DataConfig) -> RunConfig:
    return on_cifar(data, mae(CIFAR, 200, size="cifar", pass_=BSS), policy="bss")


@run
def pass_prototypes_mae_cifar_200(data: DataConfig) -> RunConfig:
    return drawing(pass_mae_cifar_200(data), "pass*prototypical")


@run
def mto_mae_cifar_200(data: DataConfig) -> RunConfig:
    return with_mto(mae_cifar_200(data))


@run
def simmim_cifar_200(data: DataConfig) -> RunConfig:
    return on_cifar(data, simmim(CIFAR, 200, size="cifar"), crop=SIMMIM_CROP)


@run
def pass_simmim_cifar_200(data: DataConfig) -> RunConfig:
    return on_cifar(data, simmim(CIFAR, 200, size="cifar", pass_=PASS), policy="pass", crop=SIMMIM_CROP)


@run
def mto_simmim_cifar_200(data: DataConfig) -> RunConfig:
    return with_mto(with_cosine(simmim_cifar_200(data)))


@run
def bootmae_cifar_200(data: DataConfig) -> RunConfig:
    return on_cifar(data, bootmae(CIFAR, 200, size="cifar"))


@run
def mto_bootmae_cifar_200(data: DataConfig) -> RunConfig:
    return with_mto(bootmae_cifar_200(data))


@run
def conmim_cifar_200(data: DataConfig) -> RunConfig:
    return on_cifar(data, conmim(CIFAR, 200, size="cifar"), crop=CONMIM_CROP)


@run
def mto_conmim_cifar_200(data: DataConfig) -> RunConfig:
    return with_mto(conmim_cifar_200(data))


@run
def clmae_cifar_200(data: DataConfig) -> RunConfig:
    return on_cifar(data, clmae(CIFAR, 200, size="cifar"))
