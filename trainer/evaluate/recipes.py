"""Recipes of the papers by name (METHODS sections 1 to 4, 6 and 8): fine-tuning and linear probes, and their rates.

They are for ViT-B unless the name says another size.
"""

import math
from dataclasses import dataclass, replace

from trainer.config import require
from trainer.evaluate.knn import Pool


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneConfig:
    """One fine-tuning; the defaults are MAE's for ViT-B."""

    epochs: int = 100
    batch: int = 1024
    """Images of a step; at most the training images are taken."""
    base_lr: float = 5e-4
    """Peak learning rate for lr_batch images."""
    lr_batch: int = 256
    """Batch that base_lr is stated for; 0 takes it as it is."""
    min_lr: float = 1e-6
    """Rate at the end of the cosine, absolute."""
    warmup_epochs: int = 5
    warmup_lr: float = 0.0
    """Rate at step 0, absolute."""
    weight_decay: float = 0.05
    """AdamW weight decay of matrices."""
    betas: tuple[float, float] = (0.9, 0.999)
    layer_decay: float = 0.65
    """Factor on the rate for each layer further from the head, in (0, 1]."""
    drop_path: float = 0.1
    """Stochastic depth of the last block."""
    clip_norm: float = 0.0
    """Largest gradient norm; 0 means no clipping."""
    average_decay: float = 0.0
    """Decay of a moving average of the weights that is evaluated instead; 0 means none."""
    rand_augment: str = "rand-m9-mstd0.5-inc1"
    """timm's RandAugment string; empty means none."""
    erase: float = 0.25
    """Probability that a rectangle of an image becomes noise."""
    mixup: float = 0.8
    """Alpha of mixup; 0 means none."""
    cutmix: float = 1.0
    """Alpha of cutmix; 0 means none."""
    smoothing: float = 0.1
    """Label smoothing, in [0, 1)."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Area of the random crops as a share of the image."""
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.epochs >= 1, f"epochs must be 1 or more; got {self.epochs}.")
        require(self.batch >= 1, f"batch must be 1 or more; got {self.batch}.")
        require(self.base_lr > 0, f"base_lr must be above 0; got {self.base_lr}.")
        require(0 < self.layer_decay <= 1, f"layer_decay must be in (0, 1]; got {self.layer_decay}.")
        require(0 <= self.smoothing < 1, f"smoothing must be in [0, 1); got {self.smoothing}.")
        require(
            not (self.mixup or self.cutmix) or self.batch % 2 == 0,
            f"mixup and cutmix mix pairs, so batch must be even; got {self.batch}. Try {self.batch + 1}.",
        )


MAE = FinetuneConfig()
SIMMIM = FinetuneConfig(
    batch=2048,
    base_lr=1.25e-3,
    lr_batch=512,
    min_lr=2.5e-7,
    warmup_epochs=20,
    warmup_lr=2.5e-7,
    clip_norm=5.0,
)
BOOTMAE = FinetuneConfig(batch=2048, base_lr=5e-3, lr_batch=0, warmup_epochs=20, layer_decay=0.6, average_decay=0.9998)
CONMIM = FinetuneConfig(base_lr=4e-3, lr_batch=0, warmup_epochs=20)
FINETUNE: dict[str, FinetuneConfig] = {
    "mae": MAE,
    "mae_l": replace(MAE, epochs=50, base_lr=1e-3, layer_decay=0.75, drop_path=0.2),
    "mae_h": replace(MAE, epochs=50, base_lr=1e-3, layer_decay=0.75, drop_path=0.3),
    "prototypes": replace(MAE, base_lr=1e-3, layer_decay=0.75, erase=0.0),
    "simmim": SIMMIM,
    "simmim_swin_b": replace(SIMMIM, layer_decay=0.9),
    "simmim_swin_b_800": replace(SIMMIM, layer_decay=0.8),
    "simmim_swin_l_800": replace(SIMMIM, layer_decay=0.7, drop_path=0.2),
    "bootmae": BOOTMAE,
    "conmim": CONMIM,
    "mto_mae": MAE,
    "mto_simmim": replace(SIMMIM, layer_decay=0.9, warmup_epochs=10),
    "mto_bootmae": replace(BOOTMAE, layer_decay=0.75),
    "mto_conmim": CONMIM,
}
"""`mto_*` are those of the MTO paper, where it differs from the repositories (METHODS section 11, line 20)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearConfig:
    """One probe's recipe; the defaults are MAE's."""

    epochs: int = 90
    batch: int = 16384
    """Images of a step; at most the training images are taken."""
    base_lr: float = 0.1
    """Learning rate for 256 images."""
    lr_batch: int = 256
    """Images that base_lr is stated for; 0 takes it as it is (CL-MAE)."""
    warmup_epochs: int = 10
    pool: Pool = "cls"
    layer: int = 0
    """Read tokens after this many blocks; 0 reads the output (BootMAE: 9 of 12)."""
    augment: bool = True
    """Random crops and flips; without them features are computed once."""
    seed: int = 0

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


def cosine_rate(config: FinetuneConfig | LinearConfig, batch: int, steps: int, step: int) -> float:
    """Return the learning rate of a step, from 0: linear warm-up, then a half cosine, by fractional epoch (MAE).

    `batch`, the images of a step, scales base_lr; `steps` are those of an epoch. A linear probe starts and ends at 0.
    """
    peak = config.base_lr * (batch / config.lr_batch if config.lr_batch else 1.0)
    low, end = (config.warmup_lr, config.min_lr) if isinstance(config, FinetuneConfig) else (0.0, 0.0)
    warmup = min(config.warmup_epochs, config.epochs - 1)  # a short run keeps one epoch of the cosine
    epoch = step / steps
    if epoch < warmup:
        return low + (peak - low) * epoch / warmup
    done = (epoch - warmup) / (config.epochs - warmup)
    return end + (peak - end) * 0.5 * (1 + math.cos(math.pi * done))
