"""Image features that need no trained network: where the data is compared before any model exists.

Plain arrays in, plain arrays out; the caller decodes. Pixels compare colour layout, HOG compares shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d

Float32 = NDArray[np.float32]
Uint8 = NDArray[np.uint8]

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
PIXEL_GRID = 16
HOG_SIDE, HOG_CELL, HOG_BINS = 64, 8, 9  # Dalal and Triggs, CVPR 2005: 8-pixel cells, 9 unsigned orientations
HOG_CLIP = 0.2  # the same paper: L2-Hys


def image_features(images: Iterable[Uint8], kind: str = "pixels") -> Float32:
    """Feature vectors of a stream of image batches.

    Args:
        images: uint8 [n, 3, H, W] batches; n, H and W may differ between batches.
        kind: a name of FEATURES.

    Returns:
        float32 [N, F].

    Raises:
        ValueError: for an unknown kind, a batch of another shape or type, or no images.
    """
    if kind not in FEATURES:
        raise ValueError(f"features must be one of {', '.join(FEATURES)}; got {kind!r}.")
    parts = [FEATURES[kind](_checked(batch)) for batch in images]
    if not sum(len(part) for part in parts):
        raise ValueError("images must hold at least one image; got none.")
    return np.concatenate(parts)


def pixel_features(images: Uint8) -> Float32:
    """Mean colours of a 16 x 16 grid, in [0, 1]: float32 [n, 768]."""
    pooled = adaptive_avg_pool2d(torch.from_numpy(images).float() / 255.0, PIXEL_GRID)
    return np.asarray(pooled.flatten(1).numpy(), dtype=np.float32)


def hog_features(images: Uint8) -> Float32:
    """Histograms of oriented gradients on a 64 x 64 luma image: float32 [n, 7 * 7 * 4 * 9]."""
    luma = (torch.from_numpy(images).float() * torch.tensor(LUMA)[:, None, None]).sum(1, keepdim=True) / 255.0
    cells = _orientation_cells(adaptive_avg_pool2d(luma, HOG_SIDE)[:, 0])
    blocks = torch.stack(
        [cells[:, :, :-1, :-1], cells[:, :, :-1, 1:], cells[:, :, 1:, :-1], cells[:, :, 1:, 1:]], dim=1
    )
    flat = blocks.permute(0, 3, 4, 1, 2).flatten(3)
    clipped = torch.nn.functional.normalize(flat, dim=-1, eps=1e-5).clamp(max=HOG_CLIP)
    return np.asarray(torch.nn.functional.normalize(clipped, dim=-1, eps=1e-5).flatten(1).numpy(), dtype=np.float32)


def _orientation_cells(luma: torch.Tensor) -> torch.Tensor:
    """Gradient magnitude by cell and unsigned orientation, shared linearly between two bins: [n, 9, 8, 8]."""
    down, right = torch.zeros_like(luma), torch.zeros_like(luma)
    down[:, 1:-1] = luma[:, 2:] - luma[:, :-2]
    right[:, :, 1:-1] = luma[:, :, 2:] - luma[:, :, :-2]
    magnitude = torch.hypot(down, right)
    place = torch.remainder(torch.atan2(down, right), torch.pi) / torch.pi * HOG_BINS - 0.5
    lower = place.floor()
    share = place - lower
    bins = torch.zeros(len(luma), HOG_BINS, HOG_SIDE, HOG_SIDE)
    bins.scatter_add_(1, torch.remainder(lower, HOG_BINS).long()[:, None], (magnitude * (1 - share))[:, None])
    bins.scatter_add_(1, torch.remainder(lower + 1, HOG_BINS).long()[:, None], (magnitude * share)[:, None])
    return avg_pool2d(bins, HOG_CELL)


FEATURES: dict[str, Callable[[Uint8], Float32]] = {"pixels": pixel_features, "hog": hog_features}


def _checked(images: Uint8) -> Uint8:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be uint8 [n, 3, H, W]; got {images.dtype} {images.shape}.")
    return np.require(images, requirements=["C", "W"])
