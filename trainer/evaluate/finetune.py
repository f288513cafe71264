"""Fine-tuning a whole encoder on labelled images by the papers' recipes; timm's model, one linear head.

Shapes: B batch, C classes.
"""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.models._manipulate import group_with_matcher
from torch import Tensor, nn

from loader import Transform
from trainer.evaluate.augment import Augment
from trainer.evaluate.data import LabelledShards, center_crop
from trainer.evaluate.encoders import PretrainedEncoder
from trainer.evaluate.fit import Figures, Fit, Progress, classifier_figures, fit, named_groups
from trainer.evaluate.metrics import top_k
from trainer.evaluate.recipes import FinetuneConfig, cosine_rate
from trainer.precision import autocast

HEAD_STD = 2e-5  # standard deviation of the classifier's initial weights (MAE)


def finetune(
    pretrained: PretrainedEncoder,
    train: LabelledShards,
    test: LabelledShards,
    config: FinetuneConfig,
    *,
    device: torch.device,
    image_size: int | None = None,
    evaluate_epochs: int = 1,
    directory: str | Path | None = None,
    progress: Progress | None = None,
) -> Figures:
    """Fine-tune on `train` and return acc1 and acc5 of the last test, best_acc1 and the curve.

    Crops are of `image_size`, the encoder's own by default. Every `evaluate_epochs`, and after the last, `test` is
    classified and a checkpoint goes to `directory`, from which an interrupted fine-tuning continues. `progress` is
    called with (steps done, all steps).
    """
    size = image_size or pretrained.image_size
    # Mixup and cutmix pair the images of a batch: a small data set may need to leave one out.
    batch = min(config.batch, len(train) - len(train) % 2 if config.mixup or config.cutmix else len(train))
    steps = train.epoch_steps(batch)
    classes = max(train.num_classes, test.num_classes)
    torch.manual_seed(config.seed)
    model = pretrained.build(num_classes=classes, image_size=size, drop_path=config.drop_path).to(device)
    head: Any = model.get_classifier()  # type: ignore[operator]  # of any timm model
    if isinstance(head, nn.Linear):
        nn.init.trunc_normal_(head.weight, std=HEAD_STD)
        nn.init.zeros_(head.bias)
    average = copy.deepcopy(model).eval().requires_grad_(False) if config.average_decay else None
    augment = Augment(config, classes, mean=pretrained.mean, std=pretrained.std)
    crop = Transform(size=size, scale=config.crop_scale)

    def make(step: int) -> tuple[Tensor, Tensor]:
        images, labels = train.train_batch(step, crop, batch=batch, seed=config.seed)
        return augment(images, labels, step)

    def loss(pair: tuple[Tensor, Tensor]) -> Tensor:
        logits_BC = model(pair[0].to(device)).float()
        errors_B: Tensor = -(pair[1].to(device) * logits_BC.log_softmax(dim=1)).sum(dim=1)
        return errors_B.mean()

    def evaluate(step: int) -> Figures:
        tested = average if average is not None else model
        return {"epoch": step // steps, **accuracy(tested, test, pretrained, size=size, device=device)}

    job = Fit(
        model=model,
        optimizer=torch.optim.AdamW(layer_groups(model, config), lr=0.0, betas=config.betas),
        batch=make,
        loss=loss,
        rate=partial(cosine_rate, config, batch, steps),
        total_steps=config.epochs * steps,
        clip_norm=config.clip_norm,
        average=average,
        average_decay=config.average_decay,
        settings={"config": repr(config), "image_size": size, "samples": len(train), "encoder": pretrained.name},
    )
    curve = fit(job, directory=directory, evaluate=evaluate, evaluate_every=evaluate_epochs * steps, progress=progress)
    return classifier_figures(curve, config.epochs)


def accuracy(
    model: nn.Module, shards: LabelledShards, pretrained: PretrainedEncoder, *, size: int, device: torch.device
) -> dict[str, float]:
    """Return acc1 and acc5 of a classifier in eval mode on all images, evaluation crop."""
    shift, scale = pretrained.pixel_statistics(device, 255)
    scores, wanted = [], []
    with torch.no_grad(), autocast(device, "auto"):
        for images, labels, _ in shards.in_order(center_crop(size)):
            scores.append(model((images.to(device).float() - shift) / scale).float())
            wanted.append(labels.to(device))
    return top_k(torch.cat(scores), torch.cat(wanted))


def layer_groups(model: nn.Module, config: FinetuneConfig) -> list[dict[str, Any]]:
    """Return AdamW groups whose rates fall by `layer_decay` a layer from the head down, by timm's order of layers."""
    layers = layer_numbers(model)
    spared = set(getattr(model, "no_weight_decay", set)()) | {"pos_embed", "cls_token"}
    return named_groups(
        model.named_parameters(),
        weight_decay=config.weight_decay,
        free=lambda name, parameter: parameter.ndim <= 1 or name.endswith(".bias") or name in spared,
        layers=layers,
        layer_decay=config.layer_decay,
        top=max(layers.values()),
    )


def layer_numbers(model: nn.Module) -> dict[str, int]:
    """Return the layer of each parameter: 0 for the embeddings, then the blocks, the last for norm and head.

    A model for which timm has no order of layers has one layer.
    """
    matcher: Any = getattr(model, "group_matcher", None)
    if matcher is None:
        return dict.fromkeys((name for name, _ in model.named_parameters()), 0)
    found: dict[str, int] = group_with_matcher(model.named_parameters(), matcher(coarse=False), reverse=True)
    return found
