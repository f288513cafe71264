"""Images, boxes and masks in COCO's format, cut and scaled as ViTDet trains on them (METHODS section 9)."""

import contextlib
import io
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pycocotools.coco import COCO
from torch import Tensor

from trainer.config import require

Target = dict[str, Tensor]
SMALLEST_BOX = 1.0
"""Pixels; a box of which a crop leaves less is dropped."""


class CocoFolder:
    """The images of one annotation file; category k of the file, in order of id, is label 1 + k.

    Raises:
        ValueError: the file is not in COCO's format, or images are missing.
    """

    def __init__(self, annotations: str | Path, images: str | Path) -> None:
        self.images = Path(images)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
                self.coco = COCO(str(annotations))
            self.ids: list[int] = sorted(self.coco.getImgIds())
            self.categories: list[int] = sorted(self.coco.getCatIds())
            self.files: dict[int, str] = {one["id"]: one["file_name"] for one in self.coco.loadImgs(self.ids)}
        except (OSError, ValueError, KeyError, AssertionError) as error:
            raise ValueError(f"annotations must be a COCO instances file; {annotations} is not ({error}).") from error
        require(
            bool(self.ids and self.categories),
            f"a COCO file must hold images and categories; {annotations}'s are empty.",
        )
        missing = [name for name in self.files.values() if not (self.images / name).is_file()]
        require(
            not missing,
            f"all images of {annotations} must be in {images}; {len(missing)} are not, first {missing[:1]}.",
        )

    def __len__(self) -> int:
        return len(self.ids)

    def load(self, number: int) -> tuple[Tensor, Target]:
        """Return (image uint8[3, H, W], boxes float32[n, 4] xyxy, labels int64[n], masks uint8[n, H, W]) of an image.

        Crowds are left out: a region of many objects is no box to learn; COCO's test ignores them itself.
        """
        image_id = self.ids[number]
        with Image.open(self.images / self.files[image_id]) as opened:
            pixels = torch.from_numpy(np.array(opened.convert("RGB"))).permute(2, 0, 1)
        found = self.coco.loadAnns(self.coco.getAnnIds([image_id], iscrowd=False))
        found = [one for one in found if one["bbox"][2] > 0 and one["bbox"][3] > 0]
        boxes = torch.tensor([one["bbox"] for one in found], dtype=torch.float32).view(-1, 4)
        boxes[:, 2:] += boxes[:, :2]  # COCO has x, y, width, height; torchvision's detectors take corners
        masks = [torch.from_numpy(self.coco.annToMask(one)) for one in found]
        labels = [1 + self.categories.index(one["category_id"]) for one in found]
        target = {
            "boxes": boxes,
            "labels": torch.tensor(labels, dtype=torch.int64),
            "masks": torch.stack(masks) if masks else torch.zeros(0, *pixels.shape[1:], dtype=torch.uint8),
        }
        return pixels, target


def letterbox(image: Tensor, side: int) -> tuple[Tensor, float]:
    """Return a uint8[3, H, W] image in [0, 1] fitted into the top left of a square, float32[3, side, side].

    The second value is the factor from its pixels to those of the square.
    """
    scale = side / max(image.shape[1:])
    pixels = resize(image, scale)
    return F.pad(pixels, (0, side - pixels.shape[2], 0, side - pixels.shape[1])), scale


def resize(image: Tensor, factor: float) -> Tensor:
    """Return a uint8 image in [0, 1] at another size; a side is a pixel at least."""
    size = [max(round(length * factor), 1) for length in image.shape[1:]]
    return F.interpolate(image[None].float() / 255, size=size, mode="bilinear", antialias=True)[0].clamp(0, 1)


def jitter(
    image: Tensor, target: Target, *, side: int, scale: tuple[float, float], generator: np.random.Generator
) -> tuple[Tensor, Target]:
    """Return a pair of `CocoFolder` at a random scale, cropped or padded to a square, mirrored with probability 1/2.

    Large-scale jitter (Ghiasi et al., arXiv:2012.07177). `scale` is its range; 1 fits the image into the square.
    """
    height, width = image.shape[1:]
    pixels = resize(image, float(generator.uniform(*scale)) * side / max(height, width))
    size = pixels.shape[1:]
    masks = F.interpolate(target["masks"][:, None].float(), size=size, mode="nearest-exact")[:, 0].to(torch.uint8)
    # By the rounded size, not by `factor`: boxes stay where their masks are.
    ratio = torch.tensor([size[1] / width, size[0] / height] * 2)
    boxes = target["boxes"] * ratio
    top, left = (int(generator.integers(max(length - side, 0) + 1)) for length in size)
    pixels, masks = (part[..., top : top + side, left : left + side] for part in (pixels, masks))
    seen = torch.tensor([pixels.shape[2], pixels.shape[1]] * 2, dtype=torch.float32)
    boxes = (boxes - torch.tensor([left, top] * 2)).clamp(min=0).minimum(seen)
    if generator.random() < 0.5:
        pixels, masks = pixels.flip(-1), masks.flip(-1)
        boxes = torch.stack([seen[0] - boxes[:, 2], boxes[:, 1], seen[0] - boxes[:, 0], boxes[:, 3]], dim=1)
    kept = ((boxes[:, 2:] - boxes[:, :2]) >= SMALLEST_BOX).all(dim=1)
    padding = (0, side - pixels.shape[2], 0, side - pixels.shape[1])
    changed = {"boxes": boxes[kept], "labels": target["labels"][kept], "masks": F.pad(masks[kept], padding)}
    return F.pad(pixels, padding), changed
