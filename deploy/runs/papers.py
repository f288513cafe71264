"""What the papers' named runs are composed of: each method's optimisation, its machines, its data, its variants.

The papers state batch, warm-up and length in images and epochs. A `Corpus` says how many images an epoch has and which
share of the paper's batch fits; from these a method's function derives the steps (METHODS sections 1 to 7).
`on_imagenet` and `on_cifar` add crops, loaders and ranks; `drawing` and `with_...` change one thing of a run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from deploy.runs.config import DataConfig, RunConfig, TrainersConfig
from loader import FleetConfig, LoaderConfig, Transform
from scoring import CurriculumConfig
from trainer import TrainConfig, model_size
from trainer.config import MtoConfig, PassConfig
from trainer.progress import total_steps


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """The data that a recipe is scaled to."""

    samples: int
    """Number of training images."""
    batch_share: float
    """Batch as a share of the paper's, above 0."""
    image_size: int
    """Side of the crop, in pixels."""


IMAGENET = Corpus(samples=1_281_167, batch_share=1.0, image_size=224)
CIFAR = Corpus(samples=50_000, batch_share=1 / 8, image_size=32)
UNNAMED = "unnamed"
"""Name of a run until its function's name is given to it."""
PASS = PassConfig(enabled=True)
BSS = PassConfig(enabled=True, score="bss")
SIMMIM_CROP = Transform(scale=(0.67, 1.0), interpolation="bilinear")
CONMIM_CROP = Transform(scale=(0.08, 1.0))
# Lin et al. (CVPR 2025) anneal the temperature from 0.07 to 0.6; these are the effective sizes at the two (Eq. 5).
# A size holds for every policy, while one temperature gives prototypical and hard draws different sizes.
ANNEALED = CurriculumConfig(start=0.20, end=0.614)


def mae(corpus: Corpus, epochs: int, *, size: str, **model: Any) -> TrainConfig:
    """MAE (He et al., CVPR 2022): batch 4096, 1.5e-4 per 256 images, 40 epochs of warm-up."""
    return _scaled(corpus, epochs, batch=4096, warmup_epochs=40, method="mae", model=model_size(size, **model))


def simmim(corpus: Corpus, epochs: int, *, size: str, **model: Any) -> TrainConfig:
    """SimMIM (Xie et al., CVPR 2022): batch 2048, 1e-4 per 512 images, AdamW (.9, .999), gradients clipped at 5."""
    # Masks are blocks of 32 pixels, and 0.6 of those hides 61 % of the tokens (METHODS section 2).
    shape = {"masking": "simmim", "mask_ratio": 0.6, "layer_scale": 0.1, "drop_path": 0.1, "norm_pix": False} | model
    return _scaled(
        corpus,
        epochs,
        batch=2048,
        warmup_epochs=10,
        method="simmim",
        model=model_size(size, **shape),
        base_lr=1e-4,
        lr_batch=512,
        # The paper's code scales the first rate of the warm-up with the batch too, not only the base rate.
        warmup_lr=5e-7 * round(2048 * corpus.batch_share) / 512,
        schedule="multistep",
        betas=(0.9, 0.999),
        clip_norm=5.0,
    )


def bootmae(corpus: Corpus, epochs: int, *, size: str, **model: Any) -> TrainConfig:
    """BootMAE (Dong et al., ECCV 2022): MAE's optimisation, 1e-4 at the end, pixels in [-1, 1], block-wise masks."""
    half = (0.5, 0.5, 0.5)  # its code scales pixels to [-1, 1] instead of by ImageNet's mean and deviation
    shape = model_size(size, masking="block", **model)
    # The last rate is absolute: unlike the base rate it does not scale with the batch.
    return _scaled(
        corpus, epochs, batch=4096, warmup_epochs=40, method="bootmae", model=shape, min_lr=1e-4, mean=half, std=half
    )


def conmim(corpus: Corpus, epochs: int, *, size: str, **model: Any) -> TrainConfig:
    """ConMIM (Yi et al., ICLR 2023): batch 2048, 5e-4 for any batch, AdamW (.9, .98), gradients clipped at 1."""
    shape = {"masking": "simmim", "mask_ratio": 0.75, "layer_scale": 0.1} | model
    return _scaled(
        corpus,
        epochs,
        batch=2048,
        warmup_epochs=10,
        method="conmim",
        model=model_size(size, **shape),
        base_lr=5e-4,
        lr_batch=0,  # the rate is absolute, whatever the batch
        min_lr=1e-5,
        betas=(0.9, 0.98),
        clip_norm=1.0,
    )


def clmae(corpus: Corpus, epochs: int, *, size: str, **model: Any) -> TrainConfig:
    """CL-MAE (Madan et al., WACV 2024): MAE's optimisation, plain pixel targets.

    The base rate is MAE's 1.5e-4, not the 1e-3 of CL-MAE's own code.
    """
    shape = model_size(size, norm_pix=False, **model)
    return _scaled(corpus, epochs, batch=4096, warmup_epochs=40, method="clmae", model=shape)


def _scaled(corpus: Corpus, epochs: int, *, batch: int, warmup_epochs: int, **fields: Any) -> TrainConfig:
    """Turn a recipe, stated in epochs and with the paper's global batch, into steps on a corpus.

    A run shorter than five warm-ups of the paper warms up for a fifth of its steps. `fields` are further fields of
    TrainConfig; `model` is needed.
    """
    # A smaller batch keeps the paper's epochs; TrainConfig scales the base rate with the batch.
    global_batch = round(batch * corpus.batch_share)
    epoch_steps = corpus.samples // global_batch
    settings: PassConfig = fields["model"].pass_
    # PASS trains on a subset after its full epochs, so its epochs have fewer steps.
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


def on_imagenet(
    data: DataConfig, train: TrainConfig, *, policy: str = "uniform", crop: Transform | None = None
) -> RunConfig:
    """Return a run on eight GPUs with eight loaders, at 224 pixels."""
    return RunConfig(
        name=UNNAMED,
        data=replace(data, transform=replace(crop or Transform(), size=IMAGENET.image_size)),
        train=train,
        curriculum=replace(ANNEALED, policy=policy),
        loader=LoaderConfig(threads=4, cache_bytes=8 * 2**30),
        fleet=FleetConfig(loaders=8, cpus_per_loader=4.0),
        trainers=TrainersConfig(workers=8, use_gpu=True),
    )


def on_cifar(
    data: DataConfig, train: TrainConfig, *, policy: str = "uniform", crop: Transform | None = None
) -> RunConfig:
    """Return a run on one machine, at 32 pixels."""
    return RunConfig(
        name=UNNAMED,
        data=replace(data, transform=replace(crop or Transform(), size=CIFAR.image_size)),
        train=train,
        curriculum=replace(ANNEALED, policy=policy),
        trainers=TrainersConfig(cpus_per_worker=2.0),
    )


def drawing(run: RunConfig, policy: str) -> RunConfig:
    """Return the run with another policy."""
    return replace(run, curriculum=replace(run.curriculum, policy=policy))


def with_mto(run: RunConfig) -> RunConfig:
    """Return the run with the masked-token losses of MTO."""
    model = replace(run.train.model, mto=MtoConfig(enabled=True))
    return replace(run, train=replace(run.train, model=model))


def with_cosine(run: RunConfig) -> RunConfig:
    """Return the run with a cosine learning rate: MTO trains SimMIM with it, not with SimMIM's steps."""
    return replace(run, train=replace(run.train, schedule="cosine"))
