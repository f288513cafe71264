"""Augmentation of fine-tuning, in order: RandAugment, random erasing, mixup or cutmix; by timm where it has them.

Everything random is a function of (seed, step). timm's parts draw from the global generators of Python and numpy, so
those are seeded here and one thread does all of it; torch's generator belongs to the model.

Shapes: B batch, C classes.
"""

import math
import random
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.mixup import Mixup
from torch import Tensor

from trainer.evaluate.recipes import FinetuneConfig

ERASE_AREA, ERASE_ASPECT, ERASE_ATTEMPTS = (0.02, 1 / 3), 0.3, 10  # timm's random erasing, as MAE's recipe uses it
SWITCH = 0.5  # probability of cutmix where both are on (all recipes)


class Augment:
    """Turns uint8 crops and labels into images normalised by `mean` and `std`, in [0, 1], and soft targets."""

    def __init__(
        self, config: FinetuneConfig, num_classes: int, *, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        self.config, self.num_classes = config, num_classes
        self.shift, self.scale = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
        colour = tuple(round(255 * value) for value in mean)
        self.policy = rand_augment_transform(config.rand_augment, {"img_mean": colour}) if config.rand_augment else None
        self.mixer = (
            Mixup(  # type: ignore[no-untyped-call]
                config.mixup,
                config.cutmix,
                switch_prob=SWITCH,
                label_smoothing=config.smoothing,
                num_classes=num_classes,
            )
            if config.mixup or config.cutmix
            else None
        )

    def __call__(self, images_u8: Tensor, labels_B: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return (float32[B, 3, H, W], targets float32[B, C]) of a step from uint8[B, 3, H, W] and int64[B].

        An odd batch, which cannot be mixed in pairs, gets smoothed targets.
        """
        source = np.random.SeedSequence([self.config.seed, step]).generate_state(2)
        random.seed(int(source[0]))
        np.random.seed(int(source[1]))  # noqa: NPY002  # timm draws from it
        if self.policy is not None:
            pictures = [Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()) for image in images_u8]
            changed = [torch.from_numpy(np.array(self.policy(picture))) for picture in pictures]
            images_u8 = torch.stack(changed).permute(0, 3, 1, 2)
        images = (images_u8.float() / 255 - self.shift) / self.scale
        generator = np.random.default_rng([self.config.seed, step])
        for image in images:
            if generator.random() < self.config.erase:
                erase(image, generator)
        if self.mixer is None or len(images) % 2:
            spread = self.config.smoothing / self.num_classes
            return images, F.one_hot(labels_B, self.num_classes).float() * (1 - self.config.smoothing) + spread
        mixed, targets = self.mixer(images, labels_B)
        return mixed, targets.float()


def erase(image: Tensor, generator: np.random.Generator) -> None:
    """Replace a rectangle of a normalised image by noise of unit variance, in place."""
    channels, height, width = image.shape
    # The aspect is drawn by its logarithm: wide and tall are equally likely. One that does not fit is drawn again.
    for _ in range(ERASE_ATTEMPTS):
        area = generator.uniform(*ERASE_AREA) * height * width
        aspect = math.exp(generator.uniform(math.log(ERASE_ASPECT), -math.log(ERASE_ASPECT)))
        rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < rows < height and 0 < columns < width:
            top, left = generator.integers(height - rows + 1), generator.integers(width - columns + 1)
            noise = generator.standard_normal((channels, rows, columns), np.float32)
            image[:, top : top + rows, left : left + columns] = torch.from_numpy(noise)
            return
