"""Images and label maps in ADE20K's layout, and their augmentation in training (METHODS section 9).

    images/training/NAME.jpg       annotations/training/NAME.png
    images/validation/NAME.jpg     annotations/validation/NAME.png

A label map is an 8-bit PNG: 0 is unknown (it becomes 255, ignored), k is class k - 1.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from trainer.config import require
from trainer.evaluate.metrics import IGNORED

LARGEST_SHARE, CROP_ATTEMPTS = 0.75, 10  # a crop should not be of one class by more than this (mmseg)
BRIGHTNESS, CONTRAST, SATURATION, HUE = 32 / 255, (0.5, 1.5), (0.5, 1.5), 18 / 360  # mmseg's photometric distortion


class SceneFolder:
    """The pairs of one part of a data set.

    Raises:
        ValueError: there are no pairs, or an image has no label map.
    """

    def __init__(self, root: str | Path, part: str) -> None:
        images = sorted((Path(root) / "images" / part).glob("*.jpg"))
        self.pairs = [(path, Path(root) / "annotations" / part / f"{path.stem}.png") for path in images]
        require(
            bool(self.pairs),
            f"segmentation data needs images/{part}/*.jpg and annotations/{part}/*.png; {root} has none.",
        )
        lonely = [image.name for image, labels in self.pairs if not labels.is_file()]
        require(not lonely, f"every image needs a label map; {len(lonely)} of {root} have none, first {lonely[:1]}.")

    def __len__(self) -> int:
        return len(self.pairs)

    def load(self, number: int) -> tuple[Tensor, Tensor]:
        """Return (image uint8[3, H, W], labels int64[H, W], 255 = ignored)."""
        image, labels = self.pairs[number]
        with Image.open(image) as opened:
            pixels = np.array(opened.convert("RGB"))
        with Image.open(labels) as opened:
            classes = np.array(opened)
        require(
            classes.ndim == 2 and classes.shape == pixels.shape[:2],
            f"a label map must be one channel of its image's size {pixels.shape[:2]}; {labels} is {classes.shape}.",
        )
        shifted = classes.astype(np.int64) - 1
        shifted[classes == 0] = IGNORED
        return torch.from_numpy(pixels).permute(2, 0, 1), torch.from_numpy(shifted)

    def num_classes(self) -> int:
        """Return one above the largest class of all label maps; reads them all, 1 if no pixel is known."""
        found = [labels[labels != IGNORED] for _, labels in map(self.load, range(len(self)))]
        return 1 + max((int(labels.max()) for labels in found if labels.numel()), default=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneAugment:
    """Random size, crop, mirror and colours of a training pair."""

    crop: int = 512
    """Side of the crop, in pixels."""
    base: tuple[int, int] = (2048, 512)
    """Longest and shortest side that an image is fitted into at scale 1."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Range of the random scale."""
    seed: int = 0
    """Seed of the augmentation."""

    def __call__(self, image: Tensor, labels: Tensor, draw: int) -> tuple[Tensor, Tensor]:
        """Return (float32[3, crop, crop] in [0, 1], int64[crop, crop]) of a draw."""
        generator = np.random.default_rng([self.seed, draw])
        pixels = image.float() / 255
        pixels, labels = fit_within(pixels, labels, self.base, float(generator.uniform(*self.scale)))
        # mmseg draws corners until the crop is not nearly of one class; the last draw is taken as it is.
        for _ in range(CROP_ATTEMPTS):
            top, left = (int(generator.integers(max(side - self.crop, 0) + 1)) for side in labels.shape)
            part = labels[top : top + self.crop, left : left + self.crop]
            counts = part[part != IGNORED].bincount()
            if (counts > 0).sum() > 1 and counts.max() / counts.sum() < LARGEST_SHARE:
                break
        pixels, labels = (part[..., top : top + self.crop, left : left + self.crop] for part in (pixels, labels))
        if generator.random() < 0.5:
            pixels, labels = pixels.flip(-1), labels.flip(-1)
        # The padding of a small image is black, and no class: it counts nowhere in the loss.
        margin = (0, self.crop - labels.shape[1], 0, self.crop - labels.shape[0])
        return F.pad(distort(pixels, generator), margin), F.pad(labels, margin, value=IGNORED)


def fit_within(image: Tensor, labels: Tensor, base: tuple[int, int], scale: float) -> tuple[Tensor, Tensor]:
    """Return the pair as large as fits into the base box times a scale, its aspect kept.

    The image is float[3, H, W] in [0, 1], the labels int64[H, W]; the box may lie or stand.
    """
    height, width = labels.shape
    factor = scale * min(max(base) / max(height, width), min(base) / min(height, width))
    size = max(round(height * factor), 1), max(round(width * factor), 1)
    resized = F.interpolate(image[None], size=size, mode="bilinear", align_corners=False, antialias=True)[0]
    # Class numbers have no order: they are taken from the nearest pixel, never mixed.
    nearest = F.interpolate(labels[None, None].float(), size=size, mode="nearest-exact")[0, 0].long()
    return resized.clamp(0, 1), nearest


def distort(pixels: Tensor, generator: np.random.Generator) -> Tensor:
    """Return an image in [0, 1] with changed brightness, contrast, saturation and hue, each with probability 1/2."""
    from torchvision.transforms import functional as change  # noqa: PLC0415  # slow to import

    if generator.random() < 0.5:
        pixels = (pixels + generator.uniform(-BRIGHTNESS, BRIGHTNESS)).clamp(0, 1)
    if generator.random() < 0.5:
        pixels = (pixels * generator.uniform(*CONTRAST)).clamp(0, 1)
    if generator.random() < 0.5:
        pixels = change.adjust_saturation(pixels, float(generator.uniform(*SATURATION)))
    if generator.random() < 0.5:
        pixels = change.adjust_hue(pixels, float(generator.uniform(-HUE, HUE)))
    return pixels
