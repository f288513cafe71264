"""Where to cut each image: crop boxes and flips from a counter RNG.

Every random number is a pure function of (seed, draw, attempt), so a crop does not depend on which loader makes it, in
what order, or how often. The distribution is torchvision's RandomResizedCrop: up to ten attempts at a random area and
aspect ratio, then a central crop. Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11)
gives four words per block: area, ratio, top and left of one attempt.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from loader.config import Transform

_MULTIPLIERS: Final = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL: Final = (0x9E3779B9, 0xBB67AE85)
_LOW: Final = np.uint64(0xFFFFFFFF)
_SHIFT: Final = np.uint64(32)
_ROUNDS: Final = 10
_ATTEMPTS: Final = 10
"""torchvision tries ten boxes before the central crop."""
_FLIP_BLOCK: Final = 1 << 16
"""Counter word that keeps the words of flips apart from those of attempts."""

Ints = NDArray[np.int64]


def philox4x32(counter: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.uint64]:
    """Return a block of four random words for each counter, uint64[n, 4]; every word, the key's too, is below 2^32."""
    c0, c1, c2, c3 = (counter[:, i] for i in range(4))
    # 32-bit words in uint64: products do not overflow, and their halves come from a shift and a mask.
    for r in range(_ROUNDS):
        k0, k1 = (np.uint64((key[i] + r * _WEYL[i]) & 0xFFFFFFFF) for i in range(2))
        p0, p1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (p1 >> _SHIFT) ^ c1 ^ k0, p1 & _LOW, (p0 >> _SHIFT) ^ c3 ^ k1, p0 & _LOW
    return np.stack([c0, c1, c2, c3], axis=1)


def uniforms(seed: int, draws: NDArray[np.int64], block: int) -> NDArray[np.float64]:
    """Return four random numbers of each draw: for the area, the ratio, the top and the left of one attempt.

    `block` is the number of the attempt, or `_FLIP_BLOCK` for flips; `seed` is below 2^64.

    Returns:
        float64[n, 4] in [0, 1).
    """
    # Counter words: the draw's low and high half, the block, and one that stays 0. Multiples of 2^-32 are exact.
    d = draws.astype(np.uint64)
    counter = np.stack([d & _LOW, d >> _SHIFT, np.full_like(d, block), np.zeros_like(d)], axis=1)
    return philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32)).astype(np.float64) * 2.0**-32


def flips(seed: int, draws: NDArray[np.int64], transform: Transform) -> NDArray[np.bool_]:
    """Return bool[n], True for the draws that are mirrored."""
    if not transform.flip or transform.kind == "center_crop":
        return np.zeros(len(draws), np.bool_)
    return uniforms(seed, draws, _FLIP_BLOCK)[:, 0] < 0.5


def boxes(
    seed: int,
    draws: NDArray[np.int64],
    transform: Transform,
    *,
    width: NDArray[np.integer],
    height: NDArray[np.integer],
) -> NDArray[np.int32]:
    """Return the part of each image that is resized, as int32[n, 4] of (top, left, height, width) in pixels.

    Widths and heights are those of the n images, in pixels, at least 1.
    """
    widths, heights = width.astype(np.int64), height.astype(np.int64)
    # A center crop is cut after the resize (`resize.resize_window`), so its box is the whole image.
    if transform.kind == "center_crop":
        return np.stack([np.zeros_like(heights), np.zeros_like(widths), heights, widths], axis=1).astype(np.int32)
    if not transform.retry:
        # One attempt with its sides clamped to the image, as in MAE's util/crop.py.
        u = uniforms(seed, draws, 0)
        w, h = _sides(u, widths, heights, transform)
        return _place(u, w.clip(1, widths), h.clip(1, heights), widths, heights).astype(np.int32)

    # torchvision's fallback for images that no attempt fits: the largest central box whose aspect ratio is in range.
    narrow, wide = transform.ratio
    aspect = widths / heights
    w = np.where(aspect > wide, np.rint(heights * wide).astype(np.int64), widths)
    h = np.where(aspect < narrow, np.rint(widths / narrow).astype(np.int64), heights)
    box = np.stack([(heights - h) // 2, (widths - w) // 2, h, w], axis=1)

    # Each attempt is made for all images that none has fitted yet: most are done after the first.
    pending = np.arange(len(draws))
    for attempt in range(_ATTEMPTS):
        image_w, image_h = widths[pending], heights[pending]
        u = uniforms(seed, draws[pending], attempt)
        w, h = _sides(u, image_w, image_h, transform)
        fits = (w > 0) & (w <= image_w) & (h > 0) & (h <= image_h)
        box[pending[fits]] = _place(u, w, h, image_w, image_h)[fits]
        pending = pending[~fits]
        if not len(pending):
            break
    return box.astype(np.int32)


def _sides(u: NDArray[np.float64], width: Ints, height: Ints, transform: Transform) -> tuple[Ints, Ints]:
    """Draw width and height of boxes: the area uniformly, the aspect ratio uniformly in its logarithm."""
    low, high = transform.scale
    log_low, log_high = np.log(transform.ratio)
    area = width * height * (low + (high - low) * u[:, 0])
    aspect = np.exp(log_low + (log_high - log_low) * u[:, 1])
    return np.rint(np.sqrt(area * aspect)).astype(np.int64), np.rint(np.sqrt(area / aspect)).astype(np.int64)


def _place(u: NDArray[np.float64], w: Ints, h: Ints, width: Ints, height: Ints) -> Ints:
    """Place w x h boxes uniformly in images of width x height; return int64[n, 4] of (top, left, height, width)."""
    top = np.floor(u[:, 2] * (height - h + 1)).astype(np.int64)
    left = np.floor(u[:, 3] * (width - w + 1)).astype(np.int64)
    return np.stack([top, left, h, w], axis=1)
