"""Semantic segmentation with UperNet on ADE20K-format data: mIoU, all-pixel and mean class accuracy.

Shapes: B batch, C classes, H W image.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.config import require
from trainer.evaluate.encoders import PretrainedEncoder
from trainer.evaluate.finetune import layer_numbers
from trainer.evaluate.fit import Figures, Fit, Progress, fit, named_groups
from trainer.evaluate.metrics import count_pixels, pixel_figures
from trainer.evaluate.segmentation_data import SceneAugment, SceneFolder, fit_within
from trainer.evaluate.upernet import UperNet
from trainer.precision import autocast


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentationConfig:
    """One training of UperNet; the defaults are BootMAE's for ViT-B on ADE20K."""

    steps: int = 160_000
    batch: int = 16
    """Images of a step."""
    base_lr: float = 4e-4
    """Rate that the linear warm-up leads to."""
    warmup_steps: int = 1500
    weight_decay: float = 0.05
    """AdamW weight decay of matrices."""
    layer_decay: float = 0.65
    """Factor on the rate for each encoder layer further from the head."""
    drop_path: float = 0.1
    crop: int = 512
    """Side of the training crops and of the test's windows; a multiple of the patch size."""
    stride: int = 341
    """Step between the test's windows, at most `crop`."""
    base: tuple[int, int] = (2048, 512)
    """Longest and shortest side that images are fitted into."""
    width: int = 768
    """Channels of the head."""
    test_every: int = 16_000
    """Steps between tests."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "crop", "stride", "width", "test_every"):
            require(getattr(self, name) >= 1, f"{name} must be 1 or more; got {getattr(self, name)}.")
        require(self.stride <= self.crop, f"stride must be at most crop ({self.crop}); got {self.stride}.")


ADE20K = SegmentationConfig()
SEGMENTATION: dict[str, SegmentationConfig] = {
    "ade20k_160k": ADE20K,
    "ade20k_80k": replace(ADE20K, steps=80_000, test_every=8000),  # PASS
}


def segmentation(
    pretrained: PretrainedEncoder,
    root: str | Path,
    config: SegmentationConfig,
    *,
    device: torch.device,
    num_classes: int = 0,
    directory: str | Path | None = None,
    progress: Progress | None = None,
) -> Figures:
    """Train UperNet on data in ADE20K's layout and return miou, aacc and macc in [0, 1], and their curve.

    Classes are counted in the label maps when `num_classes` is 0. Every test writes a checkpoint to `directory`, from
    which an interrupted training continues. `progress` is called with (steps done, all steps).
    """
    train, test = SceneFolder(root, "training"), SceneFolder(root, "validation")
    classes = num_classes or max(train.num_classes(), test.num_classes())
    torch.manual_seed(config.seed)
    backbone = pretrained.build(image_size=config.crop, drop_path=config.drop_path)
    model = UperNet(backbone, classes, width=config.width).to(device)
    augment = SceneAugment(crop=config.crop, base=config.base, seed=config.seed)
    shift, scale = pretrained.pixel_statistics(device)

    def make(step: int) -> tuple[Tensor, Tensor]:
        draws = range(step * config.batch, (step + 1) * config.batch)
        pairs = [augment(*train.load(epoch_order(draw, len(train), config.seed)), draw) for draw in draws]
        return torch.stack([image for image, _ in pairs]), torch.stack([labels for _, labels in pairs])

    job = Fit(
        model=model,
        optimizer=torch.optim.AdamW(backbone_groups(model, config), lr=0.0, betas=(0.9, 0.999)),
        batch=make,
        loss=lambda pair: model.loss((pair[0].to(device) - shift) / scale, pair[1].to(device)),
        rate=partial(poly_rate, config),
        total_steps=config.steps,
        settings={"config": repr(config), "classes": classes, "samples": len(train), "encoder": pretrained.name},
    )
    curve = fit(
        job,
        directory=directory,
        evaluate=lambda step: measure(model, test, pretrained, config, num_classes=classes, device=device),
        evaluate_every=config.test_every,
        progress=progress,
    )
    return {**{name: curve[-1][name] for name in ("miou", "aacc", "macc")}, "classes": classes, "curve": curve}


def measure(
    model: UperNet,
    test: SceneFolder,
    pretrained: PretrainedEncoder,
    config: SegmentationConfig,
    *,
    num_classes: int,
    device: torch.device,
) -> dict[str, float]:
    """Return miou, aacc and macc of a model over all images at their own size, by sliding windows."""
    shift, scale = pretrained.pixel_statistics(device)
    # Summed over all images, as mmseg does, not averaged over images.
    pairs = np.zeros((num_classes, num_classes), np.int64)
    for number in range(len(test)):
        image, labels = test.load(number)
        resized, _ = fit_within(image.float() / 255, labels, config.base, 1.0)
        with torch.no_grad(), autocast(device, "auto"):
            scores = slide(
                lambda window: model(window)[0].float(),
                (resized.to(device) - shift) / scale,
                crop=config.crop,
                stride=config.stride,
                num_classes=num_classes,
            )
        own = F.interpolate(scores[None], size=labels.shape, mode="bilinear", align_corners=False)
        pairs += count_pixels(own[0].argmax(dim=0).cpu(), labels, num_classes)
    return pixel_figures(pairs)


def slide(score: Callable[[Tensor], Tensor], image: Tensor, *, crop: int, stride: int, num_classes: int) -> Tensor:
    """Return the mean scores [C, H, W] of windows that cover an image [3, H, W]; the last ones end at its border.

    `score` maps a window [1, 3, crop, crop] to [1, C, crop, crop]; windows start every `stride` pixels.
    """
    height, width = image.shape[1:]
    padded = F.pad(image, (0, max(crop - width, 0), 0, max(crop - height, 0)))  # to one window at least
    total = padded.new_zeros(num_classes, *padded.shape[1:])
    seen = padded.new_zeros(padded.shape[1:])
    # Windows overlap; every pixel's scores are averaged over the windows that saw it.
    for top in starts(padded.shape[1], crop, stride):
        for left in starts(padded.shape[2], crop, stride):
            part = slice(top, top + crop), slice(left, left + crop)
            total[:, *part] += score(padded[None, :, *part])[0]
            seen[part] += 1
    return (total / seen)[:, :height, :width]


def starts(length: int, crop: int, stride: int) -> list[int]:
    """Return the first pixels of the windows along a side; the last window ends at the border, as in mmseg."""
    return [*range(0, length - crop, stride), length - crop]


def epoch_order(draw: int, samples: int, seed: int) -> int:
    """Return the sample of a draw, counted over all epochs from 0: every epoch is a permutation of the samples."""
    epoch, place = divmod(draw, samples)
    return int(np.random.default_rng([seed, epoch]).permutation(samples)[place])


def poly_rate(config: SegmentationConfig, step: int) -> float:
    """Return the learning rate of a step, from 0: linear warm-up times a straight line to 0 (mmseg's poly, power 1)."""
    falling = config.base_lr * (1 - step / config.steps)
    return falling * min((step + 1) / max(config.warmup_steps, 1), 1.0)


def backbone_groups(model: UperNet, config: SegmentationConfig) -> list[dict[str, Any]]:
    """Return AdamW groups: rates fall with depth inside the backbone; the head has the full rate."""
    layers = layer_numbers(model.backbone)
    return named_groups(
        model.named_parameters(),
        weight_decay=config.weight_decay,
        free=lambda name, parameter: parameter.ndim <= 1 or name.endswith(("pos_embed", "cls_token")),
        layers={f"backbone.{name}": layer for name, layer in layers.items()},
        layer_decay=config.layer_decay,
        top=max(layers.values()),
    )
