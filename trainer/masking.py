"""Which patches of an image are hidden: at random, block-wise (BEiT), or in 32-pixel blocks (SimMIM).

Each masking is a function of the step's counter-based randomness. It returns index lists, not a shuffled copy of the
tokens: attention does not depend on the order of its tokens, so visible and masked tokens are taken by index and never
put back into image order.

Shapes: B batch, N patches, V visible, M masked, K any tokens or mask blocks, D width.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainer.config import ModelConfig
from trainer.randomness import StepRandomness


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
    """Return the tokens whose numbers are in int64[B, K], as [B, K, D]."""
    # torch.gather would need the index repeated D times, 8 bytes for each value; index_select copies whole rows.
    batch, num_tokens, width = tokens_BND.shape
    offset = torch.arange(batch, device=index_BK.device)[:, None] * num_tokens
    return tokens_BND.reshape(-1, width).index_select(0, (index_BK + offset).flatten()).view(batch, -1, width)


def split_tokens(tokens_BTD: Tensor, mask: Mask) -> tuple[Tensor, Tensor]:
    """Return the (masked, visible) patch tokens, [B, M, D] and [B, V, D].

    The tokens are in image order behind a class token. Where they are fewer than the patches (the later stages of a
    Swin), each stands for a square of patches that the mask hides or shows as a whole.
    """
    side = math.isqrt(tokens_BTD.shape[1] - 1)
    num_patches = mask.visible_BV.shape[1] + mask.masked_BM.shape[1]
    mask = shrink_mask(mask, math.isqrt(num_patches) // side)
    return take(tokens_BTD[:, 1:], mask.masked_BM), take(tokens_BTD[:, 1:], mask.visible_BV)


def shrink_mask(mask: Mask, factor: int) -> Mask:
    """Return the mask of squares of factor x factor patches, each hidden or visible as a whole."""
    if factor == 1:
        return mask  # as it is: the order of its lists is the order in which losses are summed
    grid = math.isqrt(mask.visible_BV.shape[1] + mask.masked_BM.shape[1])
    squares = mask.mask_BN.view(-1, grid, grid)[:, ::factor, ::factor].flatten(1)
    return from_mask(squares, mask.masked_BM.shape[1] // factor**2)


def split_order(order_BN: Tensor, num_visible: int) -> Mask:
    """Return the mask that shows the first `num_visible` patches of each row's order and hides the others."""
    return Mask(order_BN[:, :num_visible], order_BN[:, num_visible:])


def from_mask(mask_BN: Tensor, num_masked: int) -> Mask:
    """Return the index lists, in image order, of a 0/1 mask that hides exactly `num_masked` patches in every row."""
    return split_order(mask_BN.argsort(dim=1, stable=True), mask_BN.shape[1] - num_masked)


def whole_image(batch: int, config: ModelConfig, device: torch.device) -> Mask:
    """Return the mask that hides nothing: V = N in image order, M = 0."""
    return split_order(torch.arange(config.num_patches, device=device).expand(batch, -1), config.num_patches)


def random_mask(config: ModelConfig, batch: int, randomness: StepRandomness, *, like: Tensor) -> Mask:
    """Hide M = N - int(N (1 - ratio)) patches chosen uniformly (MAE's `random_masking`): 147 of 196 at .75."""
    noise_BN = randomness.uniform("mask", batch, config.num_patches, like=like)
    return split_order(noise_BN.argsort(dim=1, stable=True), config.num_visible)


def simmim_mask(config: ModelConfig, batch: int, randomness: StepRandomness, *, like: Tensor) -> Mask:
    """Hide ceil(K ratio) of the K blocks of 32 x 32 pixels, chosen uniformly (SimMIM, arXiv:2111.09886, section 3.2).

    The patches of a block are hidden together: 30 of 49 blocks, 120 of 196 patches, at 224 pixels and ratio .6.
    """
    blocks, _ = simmim_blocks(config)
    noise_BK = randomness.uniform("mask", batch, blocks**2, like=like)
    return hide_blocks(noise_BK.argsort(dim=1, stable=True), config)


def hide_blocks(order_BK: Tensor, config: ModelConfig) -> Mask:
    """Return the mask that hides the first ceil(K ratio) mask blocks of each row's order of all K blocks."""
    blocks, scale = simmim_blocks(config)
    hidden = math.ceil(blocks**2 * config.mask_ratio)
    coarse_BK = torch.ones(order_BK.shape, device=order_BK.device).scatter_(1, order_BK[:, hidden:], 0.0)
    fine = coarse_BK.view(-1, blocks, blocks).repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    return from_mask(fine.flatten(1), hidden * scale**2)


def simmim_blocks(config: ModelConfig) -> tuple[int, int]:
    """Return (mask blocks along one side of the image, patches along one side of a block).

    A block is 32 pixels, or two patches where the image is too small for that to leave a choice.

    Raises:
        ValueError: blocks do not fill the image, or patches do not fill a block.
    """
    pixels = 32 if config.image_size >= 64 else 2 * config.patch_size
    if config.image_size % pixels or pixels % config.patch_size:
        raise ValueError(
            f"simmim masking needs an image_size that is a multiple of its {pixels}-pixel blocks, and blocks that are "
            f"a multiple of patch_size; got image_size {config.image_size} and patch_size {config.patch_size}. Try "
            "another size or masking='random'."
        )
    return config.image_size // pixels, pixels // config.patch_size


def block_mask(config: ModelConfig, batch: int, randomness: StepRandomness, *, like: Tensor) -> Mask:
    """Hide rectangles (BEiT's generator), then single patches drawn uniformly from the rest, as BootMAE does.

    Rectangles cover up to 120/196 of the patches; at 224 pixels and ratio .75, 27 single patches make up the 147. The
    visible patches come in random order, the hidden ones with the single patches first.
    """
    num_masked = config.num_patches - config.num_visible
    grid, orders = config.grid, []
    # On the CPU, row by row: how many numbers a row draws depends on how often its rectangles fit.
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
    """Return bool[grid, grid] with at most `target` patches in rectangles that may overlap (BEiT, Algorithm 1)."""
    mask = np.zeros((grid, grid), bool)
    # A rectangle counts if it hides something new and not too much. When ten in turn do not, the mask stays short of
    # the target: the caller fills it up.
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
    """Return bool[grid, grid] with one rectangle of BEiT's sizes and aspects for `room` patches still to be hidden.

    Rounded sides may make it larger than the room; the caller then draws another.
    """
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
