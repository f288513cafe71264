"""Object detection and instance segmentation: Mask R-CNN on a ViT backbone, COCO data, AP by pycocotools.

`detection` builds the model, trains it with `fit`, and tests it; `detect` and `average_precision` are the test.

The detector is torchvision's with ViTDet's heads: two convolutions in the proposal head, four convolutions and one
linear layer with norms in the box head, norms in the mask head.
"""

import contextlib
import io
import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as rle
from pycocotools.cocoeval import COCOeval
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign

from trainer.config import require
from trainer.evaluate.detection_data import CocoFolder, jitter, letterbox
from trainer.evaluate.encoders import PretrainedEncoder
from trainer.evaluate.fit import Figures, Fit, Progress, fit, named_groups
from trainer.evaluate.segmentation import epoch_order
from trainer.evaluate.vitdet import PYRAMID_WIDTH, WINDOW, PlainBackbone
from trainer.precision import autocast

LEVELS = ["0", "1", "2", "3"]
ANCHOR_SIDES = ((32,), (64,), (128,), (256,), (512,))
ASPECTS = (0.5, 1.0, 2.0)
MASK_THRESHOLD = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectionConfig:
    """One training of Mask R-CNN; the defaults are ViTDet's for ViT-B."""

    epochs: int = 100
    batch: int = 64
    """Images of a step; at most the training images are taken."""
    lr: float = 1e-4
    """Rate after the warm-up, which is linear."""
    warmup_steps: int = 250
    milestones: tuple[float, float] = (8 / 9, 26 / 27)
    """Shares of the training after which the rate falls to a tenth."""
    weight_decay: float = 0.1
    """AdamW weight decay of matrices."""
    layer_decay: float = 0.7
    """Factor on the rate for each encoder layer further from the head."""
    drop_path: float = 0.1
    image_size: int = 1024
    """Side of the square that images are fitted into; a multiple of 32 and of the patch size."""
    scale: tuple[float, float] = (0.1, 2.0)
    """Range of the random scale in training."""
    window: int = WINDOW
    """Side of the attention windows, in tokens."""
    width: int = PYRAMID_WIDTH
    """Channels of the pyramid and the heads."""
    box_width: int = 1024
    regions: int = 512
    """Regions of an image on which the heads are trained."""
    proposals: int = 1000
    """Proposals of an image that are classified in a test."""
    test_epochs: int = 10
    """Epochs between tests; the last one is always tested."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "test_epochs"):
            require(getattr(self, name) >= 1, f"{name} must be 1 or more; got {getattr(self, name)}.")
        near = max(round(self.image_size / 32), 1) * 32
        require(self.image_size % 32 == 0, f"image_size must be a multiple of 32; got {self.image_size}. Try {near}.")


VITDET = DetectionConfig()
DETECTION: dict[str, DetectionConfig] = {
    "vitdet_100": VITDET,
    "pass_12": replace(VITDET, epochs=12, batch=16, test_epochs=1),  # PASS: 12 epochs, batch 16
}


def detection(
    pretrained: PretrainedEncoder,
    train: CocoFolder,
    test: CocoFolder,
    config: DetectionConfig,
    *,
    device: torch.device,
    directory: str | Path | None = None,
    progress: Progress | None = None,
) -> Figures:
    """Train Mask R-CNN on a plain ViT and return COCO's APs of boxes and masks, in [0, 1], and their curve.

    Every test writes a checkpoint to `directory`, from which an interrupted training continues. `progress` is called
    with (steps done, all steps).

    Raises:
        ValueError: the encoder is not a plain ViT, or the categories of both sets differ.
    """
    require(
        train.categories == test.categories,
        f"test categories must be those of training ({len(train.categories)}); got {len(test.categories)} others.",
    )
    torch.manual_seed(config.seed)
    model = build_detector(pretrained, config, num_classes=1 + len(train.categories)).to(device)
    batch = min(config.batch, len(train))
    steps = len(train) // batch

    def make(step: int) -> Any:
        pairs = []
        for draw in range(step * batch, (step + 1) * batch):
            # The 1 keeps these numbers apart from those of `epoch_order`, which has [seed, epoch].
            generator = np.random.default_rng([config.seed, 1, draw])
            image, target = train.load(epoch_order(draw, len(train), config.seed))
            pairs.append(jitter(image, target, side=config.image_size, scale=config.scale, generator=generator))
        return pairs

    def loss(pairs: Any) -> Tensor:
        # torchvision's detector returns its losses by name in training, and detections in eval mode.
        images = [image.to(device) for image, _ in pairs]
        targets = [{name: value.to(device) for name, value in target.items()} for _, target in pairs]
        losses: dict[str, Tensor] = model(images, targets)
        return torch.stack([value.float() for value in losses.values()]).sum()

    def evaluate(step: int) -> Figures:
        found = detect(model, test, side=config.image_size, device=device)
        return {"epoch": step // steps, **average_precision(test, found)}

    job = Fit(
        model=model,
        optimizer=torch.optim.AdamW(detector_groups(model, config), lr=0.0, betas=(0.9, 0.999)),
        batch=make,
        loss=loss,
        rate=partial(step_rate, config, config.epochs * steps),
        total_steps=config.epochs * steps,
        settings={"config": repr(config), "samples": len(train), "encoder": pretrained.name},
    )
    every = config.test_epochs * steps
    curve = fit(job, directory=directory, evaluate=evaluate, evaluate_every=every, progress=progress)
    last = {name: value for name, value in curve[-1].items() if name.startswith("ap")}
    return {**last, "epochs": config.epochs, "curve": curve}


def build_detector(pretrained: PretrainedEncoder, config: DetectionConfig, *, num_classes: int) -> MaskRCNN:
    """Return torchvision's Mask R-CNN on the pretrained encoder, with ViTDet's heads.

    `num_classes` counts the background.

    Raises:
        ValueError: the encoder is not a plain ViT.
    """
    trunk = pretrained.build(image_size=config.image_size, drop_path=config.drop_path)
    patch = int(trunk.patch_embed.patch_size[0]) if hasattr(trunk, "patch_embed") else 16  # type: ignore[index,union-attr]
    grid = config.image_size // patch
    width = config.width
    return MaskRCNN(
        PlainBackbone(trunk, grid=grid, window=config.window, width=width),
        min_size=config.image_size,
        max_size=config.image_size,
        image_mean=list(pretrained.mean),
        image_std=list(pretrained.std),
        rpn_anchor_generator=AnchorGenerator(ANCHOR_SIDES, (ASPECTS,) * len(ANCHOR_SIDES)),
        rpn_head=RPNHead(width, len(ASPECTS), conv_depth=2),
        rpn_post_nms_top_n_test=config.proposals,
        box_batch_size_per_image=config.regions,
        box_roi_pool=MultiScaleRoIAlign(LEVELS, 7, 2),
        box_head=FastRCNNConvFCHead((width, 7, 7), [width] * 4, [config.box_width], norm_layer=LayerNorm2d),
        mask_roi_pool=MultiScaleRoIAlign(LEVELS, 14, 2),
        mask_predictor=MaskRCNNPredictor(width, width, num_classes),
        box_predictor=FastRCNNPredictor(config.box_width, num_classes),
        mask_head=MaskRCNNHeads(width, [width] * 4, 1, norm_layer=LayerNorm2d),
        _skip_resize=True,  # `letterbox` and `jitter` already give squares of image_size
    )


def detect(model: nn.Module, test: CocoFolder, *, side: int, device: torch.device) -> list[dict[str, Any]]:
    """Return the detections of a model in eval mode, on images fitted into squares, in COCO's result format.

    It has ids, bbox (x, y, width, height), score and segmentation, in pixels of the image itself.
    """
    found: list[dict[str, Any]] = []
    for number in range(len(test)):
        image, _ = test.load(number)
        boxed, scale = letterbox(image, side)
        with torch.no_grad(), autocast(device, "auto"):
            output = {name: value.cpu() for name, value in model([boxed.to(device)])[0].items()}
        height, width = image.shape[1:]
        inside = slice(max(round(height * scale), 1)), slice(max(round(width * scale), 1))  # the rest is padding
        boxes = output["boxes"] / scale
        for box, label, score, mask in zip(boxes, output["labels"], output["scores"], output["masks"], strict=True):
            whole = F.interpolate(mask[None, :, *inside], size=(height, width), mode="bilinear", align_corners=False)
            encoded = rle.encode(np.asfortranarray((whole[0, 0] > MASK_THRESHOLD).numpy().astype(np.uint8)))
            left, top, right, bottom = box.tolist()
            found.append(
                {
                    "image_id": test.ids[number],
                    "category_id": test.categories[int(label) - 1],
                    "bbox": [left, top, right - left, bottom - top],
                    "score": float(score),
                    "segmentation": {"size": encoded["size"], "counts": encoded["counts"].decode("ascii")},
                }
            )
    return found


def average_precision(test: CocoFolder, found: list[dict[str, Any]]) -> dict[str, float]:
    """Return COCO's ap, ap50 and ap75 of boxes and of masks, in [0, 1] (ap_box, ap_mask, ...); 0 without detections."""
    figures: dict[str, float] = {}
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        values = [0.0, 0.0, 0.0]
        if found:
            with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
                # loadRes adds fields to what it is given: both kinds need entries of their own.
                rated = COCOeval(test.coco, test.coco.loadRes([dict(one) for one in found]), kind)
                rated.evaluate()
                rated.accumulate()
                rated.summarize()
            # pycocotools gives -1 where no category has an annotation.
            values = [max(float(value), 0.0) for value in rated.stats[:3]]
        figures |= dict(zip((f"ap_{name}", f"ap50_{name}", f"ap75_{name}"), values, strict=True))
    return figures


def step_rate(config: DetectionConfig, total_steps: int, step: int) -> float:
    """Return the learning rate of a step, from 0: linear warm-up, then a tenth after each milestone (ViTDet)."""
    falls = sum(step >= share * total_steps for share in config.milestones)
    return config.lr * 0.1**falls * min((step + 1) / max(config.warmup_steps, 1), 1.0)


def detector_groups(model: MaskRCNN, config: DetectionConfig) -> list[dict[str, Any]]:
    """Return AdamW groups: rates fall with depth inside the ViT; relative positions belong to their block."""
    depth = len(model.backbone.blocks)
    layers = {}
    for name, _ in model.named_parameters():
        if name.startswith("backbone.") and not name.startswith("backbone.pyramid."):
            block = re.search(r"blocks\.(\d+)\.", name)
            layers[name] = int(block[1]) if block else -1  # embeddings lie below block 0
    return named_groups(
        model.named_parameters(),
        weight_decay=config.weight_decay,
        free=lambda name, parameter: (
            parameter.ndim <= 1 or "rel_pos" in name or name.endswith(("pos_embed", "cls_token"))
        ),
        layers=layers,
        layer_decay=config.layer_decay,
        top=depth,
    )
