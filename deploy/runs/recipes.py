"""The papers' pre-training recipes as named runs, on ImageNet-1K and at CIFAR-10's size.

A `Corpus` says how much data an epoch is and at what scale it is trained; a method function turns it and a number of
epochs into the optimisation of its paper (METHODS sections 1 to 7); a curriculum names the policy. `RECIPES` lists the
combinations that the papers report.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from deploy.runs.config import CurriculumConfig, DataConfig, FleetConfig, RunConfig, TrainersConfig
from loader import Transform
from trainer import TrainConfig, model_size
from trainer.config import PassConfig
from trainer.pass_plan import total_steps

GIB = 2**30
BIG_FLEET = FleetConfig(loaders=8, threads=4, cpus_per_loader=4.0, cache_bytes=8 * GIB)
EIGHT_GPUS = TrainersConfig(workers=8, use_gpu=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """Where a recipe is run."""

    samples: int
    """Training images."""
    batch_share: float
    """Batch as a share of the paper's."""
    image_size: int
    """Side of the crop, in pixels."""


IMAGENET = Corpus(samples=1_281_167, batch_share=1.0, image_size=224)
CIFAR = Corpus(samples=50_000, batch_share=1 / 8, image_size=32)


def mae(corpus: Corpus, epochs: int, *, size: str, **model: Any) -> TrainConfig:
    """MAE (He et al., CVPR 2022): batch 4096, 1.5e-4 per 256 images, 40 epochs of warm-up."""
    return _train(corpus, epochs, batch=4096, warmup_epochs=40, method="mae", model=model_size(size, **model))


def simmim(corpus: Corpus, epochs: int, *, size: str, schedule: str = "multistep", **model: Any) -> TrainConfig:
    """SimMIM (Xie et al., CVPR 2022): batch 2048, 1e-4 per 512 images, AdamW (.9, .999), gradients clipped at 5."""
    shape = {"masking": "simmim", "mask_ratio": 0.6, "layer_scale": 0.1, "drop_path": 0.1, "norm_pix": False} | model
    batch = round(2048 * corpus.batch_share)
    return _train(
        corpus,
        epochs,
        batch=2048,
        warmup_epochs=10,
        method="simmim",
        model=model_size(size, **shape),
        base_lr=1e-4,
        lr_batch=512,
        warmup_lr=5e-7 * batch / 512,
        schedule=schedule,
        betas=(0.9, 0.999),
        clip_norm=5.0,
    )


def bootmae(corpus: Corpus, epochs: int, *, size: str, **model: Any) -> TrainConfig:
    """BootMAE (Dong et al., ECCV 2022): MAE's optimisation, 1e-4 at the end, pixels in [-1, 1], block-wise masks."""
    half = (0.5, 0.5, 0.5)
    shape = model_size(size, masking="block", **model)
    return _train(
        corpus, epochs, batch=4096, warmup_epochs=40, method="bootmae", model=shape, min_lr=1e-4, mean=half, std=half
    )


def conmim(corpus: Corpus, epochs: int, *, size: str, **model: Any) -> TrainConfig:
    """ConMIM (Yi et al., ICLR 2023): batch 2048, 5e-4 whatever the batch, AdamW (.9, .98), gradients clipped at 1."""
    shape = {"masking": "simmim", "mask_ratio": 0.75, "layer_scale": 0.1} | model
    return _train(
        corpus,
        epochs,
        batch=2048,
        warmup_epochs=10,
        method="conmim",
        model=model_size(size, **shape),
        base_lr=5e-4,
        lr_batch=0,
        min_lr=1e-5,
        betas=(0.9, 0.98),
        clip_norm=1.0,
    )


def clmae(corpus: Corpus, epochs: int, *, size: str, **model: Any) -> TrainConfig:
    """CL-MAE (Madan et al., WACV 2024) with the recommended rate: MAE's optimisation, plain pixel targets."""
    shape = model_size(size, norm_pix=False, **model)
    return _train(corpus, epochs, batch=4096, warmup_epochs=40, method="clmae", model=shape)


def _train(corpus: Corpus, epochs: int, *, batch: int, warmup_epochs: int, **fields: Any) -> TrainConfig:
    """A recipe stated in epochs, as steps on a corpus. PASS shortens the epochs after its full ones."""
    global_batch = round(batch * corpus.batch_share)
    epoch_steps = corpus.samples // global_batch
    settings: PassConfig = fields["model"].pass_
    steps = total_steps(corpus.samples, global_batch, epochs, settings) if settings.enabled else epochs * epoch_steps
    return TrainConfig(
        total_steps=steps,
        epoch_steps=epoch_steps,
        global_batch=global_batch,
        warmup_steps=min(warmup_epochs * epoch_steps, steps // 5),
        checkpoint_every=10 * epoch_steps,
        log_every=20,
        **fields,
    )


def _run(
    data: DataConfig,
    *,
    name: str,
    corpus: Corpus,
    method: Callable[[Corpus], TrainConfig],
    policy: str = "uniform",
    crop: Transform | None = None,
) -> RunConfig:
    big = corpus is IMAGENET
    return RunConfig(
        name=name,
        data=replace(data, transform=replace(crop or Transform(), size=corpus.image_size)),
        train=method(corpus),
        curriculum=CurriculumConfig(policy=policy, start=0.20, end=0.614),
        fleet=BIG_FLEET if big else FleetConfig(),
        trainers=EIGHT_GPUS if big else TrainersConfig(cpus_per_worker=2.0),
    )


PASS = {"enabled": True}
BSS = {"enabled": True, "score": "bss"}
MTO = {"enabled": True}
SIMMIM_CROP = Transform(scale=(0.67, 1.0), interpolation="bilinear")
CONMIM_CROP = Transform(scale=(0.08, 1.0))

_METHODS: dict[str, dict[str, Any]] = {
    # name without size and epochs -> how it trains, what it draws, how it crops
    "mae": {"method": mae},
    "prototypes_mae": {"method": mae, "policy": "prototypical"},
    "hard_mae": {"method": mae, "policy": "hard"},
    "pass_mae": {"method": partial(mae, pass_=PASS), "policy": "pass"},
    "bss_mae": {"method": partial(mae, pass_=BSS), "policy": "bss"},
    "pass_prototypes_mae": {"method": partial(mae, pass_=PASS), "policy": "pass*prototypical"},
    "mto_mae": {"method": partial(mae, mto=MTO)},
    "simmim": {"method": simmim, "crop": SIMMIM_CROP},
    "pass_simmim": {"method": partial(simmim, pass_=PASS), "policy": "pass", "crop": SIMMIM_CROP},
    "mto_simmim": {"method": partial(simmim, schedule="cosine", mto=MTO), "crop": SIMMIM_CROP},
    "bootmae": {"method": bootmae},
    "mto_bootmae": {"method": partial(bootmae, mto=MTO)},
    "conmim": {"method": conmim, "crop": CONMIM_CROP},
    "mto_conmim": {"method": partial(conmim, mto=MTO), "crop": CONMIM_CROP},
    "clmae": {"method": clmae},
}
_REPORTED = {
    "b_200": (
        "mae",
        "prototypes_mae",
        "hard_mae",
        "pass_mae",
        "bss_mae",
        "pass_prototypes_mae",
        "pass_simmim",
        "clmae",
    ),
    "b_400": ("mae", "prototypes_mae", "mto_mae", "mto_simmim", "mto_bootmae", "mto_conmim"),
    "b_800": ("mae", "prototypes_mae", "hard_mae", "simmim", "bootmae", "conmim", "mto_mae", "mto_simmim"),
    "l_800": ("mae", "mto_mae"),
    "h_800": ("mae",),
}
"""Size and epochs -> the runs that the papers report at it."""
CIFAR_EPOCHS = 200


def _recipes() -> dict[str, Callable[[DataConfig], RunConfig]]:
    recipes: dict[str, Callable[[DataConfig], RunConfig]] = {}
    places = [(scale, IMAGENET, names) for scale, names in _REPORTED.items()]
    places.append((f"cifar_{CIFAR_EPOCHS}", CIFAR, tuple(_METHODS)))
    for scale, corpus, names in places:
        letter, epochs = scale.rsplit("_", 1)
        size = letter if corpus is CIFAR else f"vit_{letter}"
        for name in names:
            settings = _METHODS[name]
            method = partial(settings["method"], epochs=int(epochs), size=size)
            recipes[f"{name}_{scale}"] = partial(
                _run, name=f"{name}_{scale}", corpus=corpus, **{**settings, "method": method}
            )
    return recipes


RECIPES = _recipes()
