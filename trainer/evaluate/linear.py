"""Linear probes: a classifier on frozen features by the recipes of MAE and BootMAE (METHODS sections 1 and 3).

The classifier is a batch norm without weights and one linear layer, trained by LARS with a scaled rate. With random
crops the encoder runs in every step; without them its features are computed once and kept.

Shapes: B batch, D width.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loader import Transform
from trainer.evaluate.data import LabelledShards
from trainer.evaluate.encoders import PretrainedEncoder
from trainer.evaluate.features import Extractor, Features
from trainer.evaluate.fit import Figures, Fit, Progress, classifier_figures, fit, named_groups
from trainer.evaluate.knn import pooled
from trainer.evaluate.lars import Lars
from trainer.evaluate.metrics import top_k
from trainer.evaluate.recipes import LinearConfig, cosine_rate

CROP_SCALE = (0.08, 1.0)  # of the probe's random crops


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
    """Train a probe on a frozen encoder and return acc1 and acc5 of the last epoch, best_acc1 and the curve.

    best_acc1, over the epochs, is what MAE reports. Every epoch writes a checkpoint to `directory`, from which an
    interrupted probe continues. `progress` is called with (steps done, all steps).
    """
    extractor = Extractor(pretrained, device, layer=config.layer)
    held_out = extractor.extract(test, (config.pool,))[config.pool]
    if not config.augment:
        stored = extractor.extract(train, (config.pool,))[config.pool]
        return probe_features(stored, held_out, config, device=device, directory=directory, progress=progress)
    batch = min(config.batch, len(train))
    crop = Transform(size=pretrained.image_size, scale=CROP_SCALE)
    # Images are made in the loop's thread; the encoder runs in the step, on the device.
    return _probe(
        lambda step: train.train_batch(step, crop, batch=batch, seed=config.seed),
        lambda images: pooled(extractor.tokens(images), config.pool),
        held_out,
        config,
        samples=len(train),
        num_classes=train.num_classes,
        device=device,
        directory=directory,
        progress=progress,
    )


def probe_features(
    train: Features,
    test: Features,
    config: LinearConfig,
    *,
    device: torch.device,
    directory: str | Path | None = None,
    progress: Progress | None = None,
) -> Figures:
    """Train a probe on features that are computed already; arguments and result are those of `linear_probe`."""
    values, labels = torch.from_numpy(train.values), torch.from_numpy(train.labels)
    batch = min(config.batch, len(values))
    steps = len(values) // batch

    def make(step: int) -> tuple[Tensor, Tensor]:
        epoch, place = divmod(step, steps)
        order = np.random.default_rng([config.seed, epoch]).permutation(len(values))
        rows = torch.from_numpy(order[place * batch : (place + 1) * batch])
        return values[rows], labels[rows]

    return _probe(
        make,
        lambda features: features.to(device),
        test,
        config,
        samples=len(values),
        num_classes=int(labels.max()) + 1,
        device=device,
        directory=directory,
        progress=progress,
    )


def _probe(
    make: Callable[[int], tuple[Tensor, Tensor]],
    embed: Callable[[Tensor], Tensor],
    test: Features,
    config: LinearConfig,
    *,
    samples: int,
    num_classes: int,
    device: torch.device,
    directory: str | Path | None,
    progress: Progress | None,
) -> Figures:
    """Train a probe on (inputs, labels) of a step from `make`; `embed` turns inputs into features on the device."""
    batch = min(config.batch, samples)
    steps = samples // batch
    torch.manual_seed(config.seed)
    # MAE's head: the norm has no weights, and those of the classifier start small.
    width, classes = test.values.shape[1], max(num_classes, int(test.labels.max()) + 1)
    classifier = nn.Linear(width, classes)
    nn.init.trunc_normal_(classifier.weight, std=0.01)
    nn.init.zeros_(classifier.bias)
    probe = nn.Sequential(nn.BatchNorm1d(width, affine=False, eps=1e-6), classifier).to(device)
    values, labels = torch.from_numpy(test.values).to(device), torch.from_numpy(test.labels).to(device)

    def evaluate(step: int) -> Figures:
        logits = torch.cat([probe(part) for part in torch.split(values, 8192)])
        return {"epoch": step // steps, **top_k(logits, labels)}

    job = Fit(
        model=probe,
        optimizer=Lars(named_groups(probe.named_parameters(), weight_decay=0.0)),
        batch=make,
        loss=lambda pair: F.cross_entropy(probe(embed(pair[0])), pair[1].to(device)),
        rate=partial(cosine_rate, config, batch, steps),
        total_steps=config.epochs * steps,
        precision="float32",
        settings={"config": repr(config), "samples": samples},
    )
    curve = fit(job, directory=directory, evaluate=evaluate, evaluate_every=steps, progress=progress)
    return classifier_figures(curve, config.epochs)
