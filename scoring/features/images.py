"""Feature spaces that need no trained network, so that data can be compared before any model exists.

Pixels compare the layout of colours; HOG compares shapes; SIFT with a bag of words compares which local shapes occur,
wherever they are. A space maps uint8 images [n, 3, H, W] to float32 features [n, F]. `FEATURES` lists the spaces of
fixed form; a bag of SIFT words first has to find its words in images of the data set (`fit_bag_of_words`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from skimage.feature import hog
from torch.nn.functional import adaptive_avg_pool2d

Float32 = NDArray[np.float32]
Uint8 = NDArray[np.uint8]
FeatureSpace = Callable[[Uint8], Float32]
"""Features of images: uint8 [n, 3, H, W] -> float32 [n, F]."""

PIXEL_GRID = 16
LUMA_SIDE = 64
HOG_CELL, HOG_BINS = 8, 9
SIFT_STEP = 8
SIFT_SIDES = (16.0, 24.0)
"""Sides of the described squares in pixels of the 64 x 64 luma image."""
SIFT_SIDE_PER_SIZE = 6.0
"""A square has 4 x 4 cells, each 1.5 times as wide as the number that OpenCV calls the size of a keypoint."""
SIFT_WIDTH = 128
SIFT_WORDS = 512
CODEBOOK_DESCRIPTORS = 200_000
"""Descriptors that the words are found in: 400 a word, those of about 1,560 images."""
CODEBOOK_ROUNDS = 15


def pixel_features(images: Uint8) -> Float32:
    """Return the mean colours of a 16 x 16 grid, in [0, 1]: float32 [n, 768]."""
    pooled = adaptive_avg_pool2d(torch.from_numpy(images).float() / 255.0, PIXEL_GRID)
    return np.asarray(pooled.flatten(1).numpy(), dtype=np.float32)


def hog_features(images: Uint8) -> Float32:
    """Return histograms of oriented gradients of a 64 x 64 luma image: float32 [n, 7 * 7 * 2 * 2 * 9]."""
    # Dalal and Triggs, CVPR 2005: 8-pixel cells, 9 unsigned orientations, blocks of 2 x 2 cells, L2-Hys.
    cell, block = (HOG_CELL, HOG_CELL), (2, 2)
    described = [
        hog(image, orientations=HOG_BINS, pixels_per_cell=cell, cells_per_block=block, block_norm="L2-Hys")
        for image in luma_images(images)
    ]
    return np.asarray(described, dtype=np.float32).reshape(len(images), -1)


FEATURES: dict[str, FeatureSpace] = {"pixels": pixel_features, "hog": hog_features}


def luma_images(images: Uint8) -> list[Uint8]:
    """Return the luma (ITU-R BT.601) of each image of uint8 [n, 3, H, W], resized to uint8 [64, 64]."""
    # Area averaging does not alias when it shrinks; it cannot enlarge.
    rule = cv2.INTER_AREA if min(images.shape[2:]) > LUMA_SIDE else cv2.INTER_LINEAR
    grey = (cv2.cvtColor(image.transpose(1, 2, 0), cv2.COLOR_RGB2GRAY) for image in images)
    return [np.asarray(cv2.resize(image, (LUMA_SIDE, LUMA_SIDE), interpolation=rule), dtype=np.uint8) for image in grey]


def dense_sift(images: Uint8) -> Float32:
    """Return RootSIFT descriptors on a grid of P points: float32 [n, P, 128].

    The squares of a descriptor sum to 1, or to 0 where the image is flat.
    """
    places = np.arange(SIFT_STEP / 2, LUMA_SIDE, SIFT_STEP)
    sizes = [side / SIFT_SIDE_PER_SIZE for side in SIFT_SIDES]
    points = [cv2.KeyPoint(float(x), float(y), size, 0.0) for size in sizes for y in places for x in places]
    sift: Any = cv2.SIFT.create()
    described = [sift.compute(image, points)[1] for image in luma_images(images)]
    flat = np.asarray(described, dtype=np.float32).reshape(len(images), len(points), SIFT_WIDTH)
    # RootSIFT (Arandjelovic and Zisserman, CVPR 2012): Euclidean distances then compare as the Hellinger kernel does.
    return np.asarray(np.sqrt(flat / np.maximum(flat.sum(axis=-1, keepdims=True), 1.0)), dtype=np.float32)


class BagOfWords:
    """The feature space of one codebook: which SIFT words an image is made of."""

    def __init__(self, words: Float32) -> None:
        """Index the words, [W, 128]."""
        self.words = np.ascontiguousarray(words, dtype=np.float32)
        import faiss  # noqa: PLC0415  # slow to import, and only this feature needs it

        self._index = faiss.IndexFlatL2(SIFT_WIDTH)
        self._index.add(self.words)

    def __call__(self, images: Uint8) -> Float32:
        """Return the square roots of each word's share in each image, rows of length 1: float32 [n, W]."""
        described = dense_sift(images)
        nearest = self._index.search(described.reshape(-1, SIFT_WIDTH), 1)[1].reshape(len(images), -1)
        # One bincount for all images: image i counts in the bins [i * W, (i + 1) * W).
        image = np.arange(len(images))[:, None] * len(self.words)
        counts = np.bincount((image + nearest).ravel(), minlength=len(images) * len(self.words))
        shares = counts.reshape(len(images), -1) / described.shape[1]
        return np.asarray(np.sqrt(shares), dtype=np.float32)


def fit_bag_of_words(images: Iterable[Uint8], *, num_words: int = SIFT_WORDS, seed: int = 0) -> BagOfWords:
    """Find the words of a data set: k-means centroids of the descriptors of some images.

    Args:
        images: uint8 [n, 3, H, W] batches in any order; reading stops when there are descriptors enough.
        num_words: W; fewer where there are fewer descriptors.
        seed: seed of the clustering.

    Raises:
        ValueError: there are no images.
    """
    parts: list[Float32] = []
    for batch in images:
        parts.append(dense_sift(batch).reshape(-1, SIFT_WIDTH))
        if sum(map(len, parts)) >= CODEBOOK_DESCRIPTORS:
            break
    if not sum(map(len, parts)):
        raise ValueError("images must hold at least one image; got none.")
    sample = np.concatenate(parts)
    count = min(num_words, len(sample))
    import faiss  # noqa: PLC0415

    kmeans = faiss.Kmeans(SIFT_WIDTH, count, niter=CODEBOOK_ROUNDS, seed=seed, min_points_per_centroid=1)
    kmeans.train(sample)
    return BagOfWords(np.asarray(kmeans.centroids, dtype=np.float32).reshape(count, SIFT_WIDTH))
