"""Image features that need no trained network: where the data is compared before any model exists.

Plain arrays in, plain arrays out; the caller decodes. Pixels compare colour layout, HOG compares shape, SIFT compares
what local shapes there are, wherever they are. `FEATURES` lists the spaces of fixed form; a bag of SIFT words has to
see some images first (`scoring.features.sift`), and encoders are in `scoring.features.encoders`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.feature import hog
from torch.nn.functional import adaptive_avg_pool2d

from scoring.features.luma import luma_images
from scoring.features.sift import fit_bag_of_words

Float32 = NDArray[np.float32]
Uint8 = NDArray[np.uint8]
FeatureSpace = Callable[[Uint8], Float32]
"""Features of images: uint8 [n, 3, H, W] -> float32 [n, F]."""

PIXEL_GRID = 16
HOG_CELL, HOG_BINS = 8, 9  # Dalal and Triggs, CVPR 2005: 8-pixel cells, 9 unsigned orientations, 2 x 2 blocks, L2-Hys


def image_features(images: Iterable[Uint8], kind: str = "pixels", *, seed: int = 0) -> Float32:
    """Feature vectors of a stream of image batches.

    Args:
        images: uint8 [n, 3, H, W] batches; n, H and W may differ between batches.
        kind: a name of FEATURES, or "sift", which keeps all images in memory to find its words.
        seed: of the words.

    Returns:
        float32 [N, F].

    Raises:
        ValueError: for an unknown kind, a batch of another shape or type, or no images.
    """
    if kind == "sift":
        images = list(images)
        space: FeatureSpace = fit_bag_of_words(map(checked_images, images), seed=seed)
    elif kind in FEATURES:
        space = FEATURES[kind]
    else:
        raise ValueError(f"features must be one of {', '.join([*FEATURES, 'sift'])}; got {kind!r}.")
    parts = [space(checked_images(batch)) for batch in images]
    if not sum(len(part) for part in parts):
        raise ValueError("images must hold at least one image; got none.")
    return np.concatenate(parts)


def pixel_features(images: Uint8) -> Float32:
    """Mean colours of a 16 x 16 grid, in [0, 1]: float32 [n, 768]."""
    pooled = adaptive_avg_pool2d(torch.from_numpy(images).float() / 255.0, PIXEL_GRID)
    return np.asarray(pooled.flatten(1).numpy(), dtype=np.float32)


def hog_features(images: Uint8) -> Float32:
    """Histograms of oriented gradients on a 64 x 64 luma image: float32 [n, 7 * 7 * 2 * 2 * 9]."""
    cell, block = (HOG_CELL, HOG_CELL), (2, 2)
    described = [
        hog(image, orientations=HOG_BINS, pixels_per_cell=cell, cells_per_block=block, block_norm="L2-Hys")
        for image in luma_images(images)
    ]
    return np.asarray(described, dtype=np.float32).reshape(len(images), -1)


FEATURES: dict[str, FeatureSpace] = {"pixels": pixel_features, "hog": hog_features}


def checked_images(images: Uint8) -> Uint8:
    """The batch, contiguous; ValueError unless it is uint8 [n, 3, H, W]."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be uint8 [n, 3, H, W]; got {images.dtype} {images.shape}.")
    return np.require(images, requirements=["C", "W"])
