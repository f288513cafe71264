"""Which patches of an image are hidden: at random, block-wise (BEiT), or in 32-pixel blocks (SimMIM).

Each masking is a function of the step's counter-based randomness. It returns index lists, not a shuffled copy of the
tokens: attention does not depend on the order of its tokens, so visible and masked tokens are taken by index and never
put back into image order.

Shapes: B batch, N patches, V visible, M masked, D width.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainer.config import ModelConfig
from trainer.randomness import Randomness


@dataclass(frozen=True, slots=True)
class Mask:
    """Visible and masked patches of a batch; every row has the same number of each."""

    visible_BV: Tensor
    """int64[B, V], patch numbers in [0, N)."""
    masked_BM: Tensor
    """int64[B, M], the other patch numbers."""

    @property
    def mask_BN(self) -> Tensor:
        """float32[B, N], 1 = masked."""
        num_patches = self.visible_BV.shape[1] + self.masked_BM.shape[1]
        ones = torch.ones(len(self.visible_BV), num_patches, device=self.visible_BV.device)
        return ones.scatter_(1, self.visible_BV, 0.0)

    def spread(self, values_BM: Tensor) -> Tensor:
        """Return values of the masked patches as [B, N] in image order, 0 on the visible patches."""
        num_patches = self.visible_BV.shape[1] + self.masked_BM.shape[1]
        return values_BM.new_zeros(len(values_BM), num_patches).scatter(1, self.masked_BM, values_BM)


def take(tokens_BND: Tensor, index_BK: Tensor) -> Tensor:
    """Return the tokens with the given numbers, [B, K, D]."""
    # One row copy each: torch.gather would need an int64 index of width D.
    batch, num_tokens, width = tokens_BND.shape
    offset = torch.arange(batch, device=index_BK.device)[:, None] * num_tokens
    return tokens_BND.reshape(-1, width).index_select(0, (index_BK + offset).flatten()).view(batch, -1, width)


def split_tokens(tokens_BTD: Tensor, mask: Mask) -> tuple[Tensor, Tensor]:
    """Return the (masked, visible) patch tokens of tokens in image order behind a class token."""
    patches_BND = tokens_BTD[:, 1:]
    return take(patches_BND, mask.masked_BM), take(patches_BND, mask.visible_BV)


def split_order(order_BN: Tensor, num_visible: int) -> Mask:
    """Return the mask whose visible patches are the first `num_visible` of an order."""
    return Mask(order_BN[:, :num_visible], order_BN[:, num_visible:])


def from_mask(mask_BN: Tensor, num_masked: int) -> Mask:
    """Return the index lists of a 0/1 mask that hides exactly `num_masked` patches in every row."""
    return split_order(mask_BN.argsort(dim=1, stable=True), mask_BN.shape[1] - num_masked)


def random_mask(config: ModelConfig, batch: int, randomness: Randomness, *, like: Tensor) -> Mask:
    """Hide N - int(N * (1 - ratio)) patches chosen uniformly (MAE's random masking)."""
    noise_BN = randomness.uniform("mask", batch, config.num_patches, like=like)
    return split_order(noise_BN.argsort(dim=1, stable=True), config.num_visible)


def simmim_mask(config: ModelConfig, batch: int, randomness: Randomness, *, like: Tensor) -> Mask:
    """Hide ceil(blocks * ratio) blocks of 32 x 32 pixels chosen uniformly (SimMIM, arXiv:2111.09886, section 3.2)."""
    blocks, scale = simmim_blocks(config)
    hidden = math.ceil(blocks**2 * config.mask_ratio)
    noise = randomness.uniform("mask", batch, blocks**2, like=like)
    coarse = torch.ones_like(noise).scatter_(1, noise.argsort(dim=1, stable=True)[:, hidden:], 0.0)
    fine = coarse.view(batch, blocks, blocks).repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    return from_mask(fine.flatten(1), hidden * scale**2)


def simmim_blocks(config: ModelConfig) -> tuple[int, int]:
    """Return the mask blocks along one side and the patches along one side of a block.

    A block is 32 pixels, or two patches where the image is too small for that to leave a choice.
    """
    pixels = 32 if config.image_size >= 64 else 2 * config.patch_size
    if config.image_size % pixels or pixels % config.patch_size:
        raise ValueError(
            f"simmim masking needs an image_size that is a multiple of its {pixels}-pixel blocks, and blocks that "
            "are a multiple of "
            f"patch_size; got image_size {config.image_size} and patch_size {config.patch_size}. Try another size or "
            "masking='random'."
        )
    return config.image_size // pixels, pixels // config.patch_size


def block_mask(config: ModelConfig, batch: int, randomness: Randomness, *, like: Tensor) -> Mask:
    """Hide rectangles (BEiT's generator), then single patches drawn uniformly from the rest, as BootMAE does.

    Rectangles cover up to 120/196 of the patches.
    """
    num_masked = config.num_patches - config.num_visible
    grid, orders = config.grid, []
    for row in range(batch):
        generator = randomness.generator("mask", row)
        mask = block_rectangles(grid, min(num_masked, round(grid * grid * BLOCK_SHARE)), generator)
        # Patches outside the rectangles first, each part shuffled: the last of them make up the count.
        orders.append(np.lexsort((generator.random(grid * grid), mask.ravel())))
    order_BN = torch.from_numpy(np.stack(orders)).to(like.device)
    return split_order(order_BN, config.num_visible)


BLOCK_SHARE = 120 / 196  # BootMAE: rectangles make 120 of 196 patches, the rest are single
BLOCK_ASPECT = math.log(1 / 0.3)  # BEiT: aspect ratios between 0.3 and 1/0.3, log-uniform
BLOCK_LOW, BLOCK_HIGH = 16 / 196, 60 / 196  # BEiT: rectangles of 16 to 60 patches of 196
BLOCK_ATTEMPTS = 10  # BEiT: rectangles tried before the mask is accepted as it is


def block_rectangles(grid: int, target: int, generator: np.random.Generator) -> np.ndarray:
    """Return bool[grid, grid] with at most `target` patches in rectangles that may overlap."""
    mask = np.zeros((grid, grid), bool)
    while mask.sum() < target:
        for _ in range(BLOCK_ATTEMPTS):
            candidate = mask | _rectangle(grid, target - int(mask.sum()), generator)
            if mask.sum() < candidate.sum() <= target:
                mask = candidate
                break
        else:
            break
    return mask


def _rectangle(grid: int, room: int, generator: np.random.Generator) -> np.ndarray:
    """Return bool[grid, grid] with one rectangle; its area is at most `room`, the patches still to be hidden."""
    low = max(BLOCK_LOW * grid * grid, 1)
    area = generator.uniform(low, max(min(room, BLOCK_HIGH * grid * grid), low))
    aspect = math.exp(generator.uniform(-BLOCK_ASPECT, BLOCK_ASPECT))
    height = min(max(round(math.sqrt(area * aspect)), 1), grid)
    width = min(max(round(math.sqrt(area / aspect)), 1), grid)
    top, left = generator.integers(grid - height + 1), generator.integers(grid - width + 1)
    mask = np.zeros((grid, grid), bool)
    mask[top : top + height, left : left + width] = True
    return mask


MASKINGS: dict[str, Callable[..., Mask]] = {"random": random_mask, "block": block_mask, "simmim": simmim_mask}
