"""Linear probes: a classifier on frozen features by the recipes of MAE and BootMAE (METHODS sections 1 and 3).

The classifier is a batch norm without weights and one linear layer, trained by LARS with a scaled rate. With random
crops the encoder runs in every step; without them its features are computed once and kept.

Shapes: B batch, D width.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loader import Transform
from trainer.config import require
from trainer.evaluate.data import LabelledShards
from trainer.evaluate.encoders import PretrainedEncoder
from trainer.evaluate.features import Extractor, Features
from trainer.evaluate.fit import Figures, Fit, Progress, fit, named_groups
from trainer.evaluate.knn import Pool
from trainer.evaluate.lars import Lars
from trainer.evaluate.metrics import top_k

CROP_SCALE = (0.08, 1.0)  # of the probe's random crops


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearConfig:
    """One probe's recipe; the defaults are MAE's."""

    epochs: int = 90
    """Passes over the training images."""
    batch: int = 16384
    """Images of a step; at most the training images are taken."""
    base_lr: float = 0.1
    """Learning rate for 256 images."""
    lr_batch: int = 256
    """Images that base_lr is stated for; 0 takes it as it is (CL-MAE)."""
    warmup_epochs: int = 10
    """Epochs of linear warm-up."""
    pool: Pool = "cls"
    """The class token after the last norm, or the mean of the patch tokens."""
    layer: int = 0
    """Read tokens after this many blocks; 0 reads the output (BootMAE: 9 of 12)."""
    augment: bool = True
    """Random crops and flips; without them features are computed once."""
    seed: int = 0
    """Seed of the classifier, the order and the crops."""

    def __post_init__(self) -> None:
        require(self.epochs >= 1, f"epochs must be 1 or more; got {self.epochs}.")
        require(self.batch >= 2, f"batch must be 2 or more, for the batch norm; got {self.batch}.")
        require(self.base_lr > 0, f"base_lr must be above 0; got {self.base_lr}.")
        require(self.warmup_epochs >= 0, f"warmup_epochs must be 0 or more; got {self.warmup_epochs}.")


LINEAR: dict[str, LinearConfig] = {
    "mae": LinearConfig(),
    "mae_l": LinearConfig(epochs=50),
    "bootmae": LinearConfig(pool="mean", layer=9),
    "clmae": LinearConfig(lr_batch=0),
    "cached": LinearConfig(augment=False),
}


class Probe(nn.Sequential):
    """Batch norm without weights, and a linear layer with small weights."""

    def __init__(self, width: int, num_classes: int) -> None:
        classifier = nn.Linear(width, num_classes)
        super().__init__(nn.BatchNorm1d(width, affine=False, eps=1e-6), classifier)
        nn.init.trunc_normal_(classifier.weight, std=0.01)
        nn.init.zeros_(classifier.bias)


def linear_probe(
    pretrained: PretrainedEncoder,
    train: LabelledShards,
    test: LabelledShards,
    config: LinearConfig,
    *,
    device: torch.device,
    directory: str | Path | None = None,
    progress: Progress | None = None,
) -> Figures:
    """Train a probe and return accuracies.

    Args:
        pretrained: whose frozen encoder.
        train: images to learn from.
        test: images to classify.
        config: recipe.
        device: where to compute.
        directory: for checkpoints; an interrupted probe there is continued.
        progress: called with (steps done, all steps).

    Returns: acc1 and acc5 of the last epoch, best_acc1 over epochs (which is what MAE reports), and the curve.
    """
    extractor = Extractor(pretrained, device, layer=config.layer)
    held_out = extractor.extract(test, (config.pool,))[config.pool]
    if config.augment:
        batch = min(config.batch, len(train))
        crop = Transform(size=pretrained.image_size, scale=CROP_SCALE)

        def make(step: int) -> Any:
            return train.train_batch(step, crop, batch=batch, seed=config.seed)

        def read(pair: Any) -> tuple[Tensor, Tensor]:
            return extractor.pooled(pair[0], config.pool), pair[1].to(device)

        sizes = {"samples": len(train), "num_classes": train.num_classes}
        return _probe(make, read, held_out, config, **sizes, device=device, directory=directory, progress=progress)
    stored = extractor.extract(train, (config.pool,))[config.pool]
    return probe_features(stored, held_out, config, device=device, directory=directory, progress=progress)


def probe_features(
    train: Features,
    test: Features,
    config: LinearConfig,
    *,
    device: torch.device,
    directory: str | Path | None = None,
    progress: Progress | None = None,
) -> Figures:
    """Train a probe on kept features; the arguments and the result are those of `linear_probe`."""
    values, labels = torch.from_numpy(train.values), torch.from_numpy(train.labels)
    batch = min(config.batch, len(values))
    steps = len(values) // batch

    def make(step: int) -> Any:
        epoch, place = divmod(step, steps)
        order = np.random.default_rng([config.seed, epoch]).permutation(len(values))
        rows = torch.from_numpy(order[place * batch : (place + 1) * batch])
        return values[rows], labels[rows]

    def read(pair: Any) -> tuple[Tensor, Tensor]:
        return pair[0].to(device), pair[1].to(device)

    sizes = {"samples": len(values), "num_classes": int(labels.max()) + 1}
    return _probe(make, read, test, config, **sizes, device=device, directory=directory, progress=progress)


def probe_rate(config: LinearConfig, batch: int, steps: int) -> Callable[[int], float]:
    """Return the rate of a step: linear warm-up, then a half cosine to 0, by fractional epoch."""
    peak = config.base_lr * (batch / config.lr_batch if config.lr_batch else 1.0)
    warmup = min(config.warmup_epochs, config.epochs - 1)

    def rate(step: int) -> float:
        epoch = step / steps
        if epoch < warmup:
            return peak * epoch / warmup
        return peak * 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / (config.epochs - warmup)))

    return rate


def _probe(
    make: Callable[[int], Any],
    read: Callable[[Any], tuple[Tensor, Tensor]],
    test: Features,
    config: LinearConfig,
    *,
    samples: int,
    num_classes: int,
    device: torch.device,
    directory: str | Path | None,
    progress: Progress | None,
) -> Figures:
    batch = min(config.batch, samples)
    steps = samples // batch
    torch.manual_seed(config.seed)
    probe = Probe(test.values.shape[1], max(num_classes, int(test.labels.max()) + 1)).to(device)
    values, labels = torch.from_numpy(test.values).to(device), torch.from_numpy(test.labels).to(device)

    def loss(pair: Any) -> Tensor:
        features_BD, wanted_B = read(pair)
        return F.cross_entropy(probe(features_BD), wanted_B)

    def evaluate(step: int) -> Figures:
        logits = torch.cat([probe(part) for part in torch.split(values, 8192)])
        return {"epoch": step // steps, **top_k(logits, labels)}

    job = Fit(
        model=probe,
        optimizer=Lars(named_groups(list(probe.named_parameters()), weight_decay=0.0)),
        batch=make,
        loss=loss,
        rate=probe_rate(config, batch, steps),
        total_steps=config.epochs * steps,
        precision="float32",
        settings={"config": repr(config), "samples": samples},
    )
    curve = fit(job, directory=directory, evaluate=evaluate, evaluate_every=steps, progress=progress)
    last, best = curve[-1], max(line["acc1"] for line in curve)
    return {"acc1": last["acc1"], "acc5": last["acc5"], "best_acc1": best, "epochs": config.epochs, "curve": curve}
