"""UperNet on a ViT: pyramid pooling on the coarsest map, a feature pyramid, and one classifier for every pixel.

(Xiao et al., ECCV 2018, as BootMAE's ADE20K config sets it; METHODS section 9.)

1. Four taps inside the ViT, all at stride 16, become maps at strides 4, 8, 16 and 32.
2. Pyramid pooling (1, 2, 3, 6) of the coarsest; each finer map adds the one above it.
3. All four are joined at stride 4 and classified; a small head on the third tap helps in training.

Shapes: B batch, D width, C classes, H W image.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.config import require

POOLS = (1, 2, 3, 6)
DROPOUT = 0.1
AUXILIARY_TAP, AUXILIARY_WEIGHT, AUXILIARY_WIDTH = 2, 0.4, 256


class UperNet(nn.Module):
    """A timm ViT, which has `forward_intermediates`, with a UperNet head of `width` channels (768 for ViT-B).

    Raises:
        ValueError: the backbone gives no maps of one resolution.
    """

    def __init__(self, backbone: nn.Module, num_classes: int, *, width: int = 768) -> None:
        super().__init__()
        blocks = len(getattr(backbone, "blocks", ()))
        require(
            blocks >= 1 and hasattr(backbone, "forward_intermediates"),
            f"segmentation needs a ViT or a BEiT; got {type(backbone).__name__}.",
        )
        trunk: Any = backbone
        self.backbone = trunk
        # The blocks whose outputs are read: the official config's of 12, the last of each quarter of other depths.
        quarters = [max(round(blocks * part / 4) - 1, 0) for part in (1, 2, 3, 4)]
        self.taps = [3, 5, 7, 11] if blocks == 12 else quarters
        inner = int(trunk.embed_dim)
        self.up4 = nn.Sequential(
            nn.ConvTranspose2d(inner, inner, 2, 2),
            nn.BatchNorm2d(inner),
            nn.GELU(),
            nn.ConvTranspose2d(inner, inner, 2, 2),
        )
        self.up2 = nn.ConvTranspose2d(inner, inner, 2, 2)
        self.pools = nn.ModuleList([nn.Sequential(nn.AdaptiveAvgPool2d(size), conv(inner, width, 1)) for size in POOLS])
        self.bottleneck = conv(inner + len(POOLS) * width, width, 3)
        self.lateral = nn.ModuleList([conv(inner, width, 1) for _ in range(3)])
        self.smooth = nn.ModuleList([conv(width, width, 3) for _ in range(3)])
        self.join = conv(4 * width, width, 3)
        self.classify = nn.Sequential(nn.Dropout2d(DROPOUT), nn.Conv2d(width, num_classes, 1))
        self.auxiliary = nn.Sequential(
            conv(inner, AUXILIARY_WIDTH, 3), nn.Dropout2d(DROPOUT), nn.Conv2d(AUXILIARY_WIDTH, num_classes, 1)
        )

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores of every pixel [B, C, H, W], and those of the auxiliary head."""
        once = sorted(set(self.taps))  # a very shallow trunk is tapped twice at a block
        found = self.backbone.forward_intermediates(
            images_BCHW, indices=once, norm=False, output_fmt="NCHW", intermediates_only=True
        )
        maps = [found[once.index(tap)] for tap in self.taps]
        size = images_BCHW.shape[2:]
        scores = self.classify(self.pyramid([self.up4(maps[0]), self.up2(maps[1]), maps[2], F.max_pool2d(maps[3], 2)]))
        return resize(scores, size), resize(self.auxiliary(maps[AUXILIARY_TAP]), size)

    def pyramid(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the joined map at the finest stride from maps of falling resolution."""
        coarse = maps[3]
        pooled = [resize(pool(coarse), coarse.shape[2:]) for pool in self.pools]
        # From the coarsest map, which has seen the whole image, down to the finest.
        above = self.bottleneck(torch.cat([coarse, *pooled], dim=1))
        levels = [above]
        for level in (2, 1, 0):
            above = self.lateral[level](maps[level]) + resize(above, maps[level].shape[2:])
            levels.append(self.smooth[level](above))
        joined: Tensor = self.join(torch.cat([resize(level, maps[0].shape[2:]) for level in levels], dim=1))
        return joined

    def loss(self, images_BCHW: Tensor, labels_BHW: Tensor) -> Tensor:
        """Return the cross-entropy of both heads; pixels labelled 255 count nowhere."""
        scores, helper = self(images_BCHW)
        # Summed over known pixels and divided by all pixels, as mmseg averages.
        main, auxiliary = (
            F.cross_entropy(found.float(), labels_BHW, ignore_index=255, reduction="sum") / labels_BHW.numel()
            for found in (scores, helper)
        )
        return main + AUXILIARY_WEIGHT * auxiliary


def conv(inner: int, out: int, kernel: int) -> nn.Sequential:
    """Return convolution, batch norm, ReLU; the resolution stays."""
    # No bias: the norm would take it off again.
    return nn.Sequential(
        nn.Conv2d(inner, out, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)
    )


def resize(maps_BDHW: Tensor, size: Sequence[int]) -> Tensor:
    """Return [B, D, H, W] maps at another (height, width), bilinear."""
    return F.interpolate(maps_BDHW, size=list(size), mode="bilinear", align_corners=False)
