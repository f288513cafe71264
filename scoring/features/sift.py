"""Dense SIFT with a bag of words: what local shapes an image has, wherever they are.

SIFT descriptors on a grid of keypoints (OpenCV), turned into RootSIFT (Arandjelovic and Zisserman, CVPR 2012); words
are k-means centroids of the descriptors of some images; an image is the square root of its histogram of words.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import cv2
import faiss
import numpy as np
from numpy.typing import NDArray

from scoring.features.luma import LUMA_SIDE, luma_images

Float32 = NDArray[np.float32]
Uint8 = NDArray[np.uint8]

GRID_STEP = 8
PATCH_SIDES = (16.0, 24.0)
"""Sides of the described squares in pixels of the 64 x 64 luma image."""
SIDE_OF_SIZE = 6.0
"""A square has 4 x 4 cells, each 1.5 times as wide as what OpenCV calls the size of a keypoint."""
DESCRIPTOR = 128
WORDS = 512
CODEBOOK_DESCRIPTORS = 200_000
"""Descriptors that the words are found in: 400 a word, those of about 1,560 images."""
CODEBOOK_ROUNDS = 15


class BagOfWords:
    """The feature space of one codebook."""

    def __init__(self, words: Float32) -> None:
        """Take the words, [W, 128]."""
        self.words = np.ascontiguousarray(words, dtype=np.float32)
        self._index = faiss.IndexFlatL2(DESCRIPTOR)
        self._index.add(self.words)

    def __call__(self, images: Uint8) -> Float32:
        """Square roots of the shares of the words in each image, of length 1: float32 [n, W]."""
        described = dense_sift(images)
        nearest = self._index.search(described.reshape(-1, DESCRIPTOR), 1)[1].reshape(len(images), -1)
        image = np.arange(len(images))[:, None] * len(self.words)
        counts = np.bincount((image + nearest).ravel(), minlength=len(images) * len(self.words))
        shares = counts.reshape(len(images), -1) / described.shape[1]
        return np.asarray(np.sqrt(shares), dtype=np.float32)


def fit_bag_of_words(images: Iterable[Uint8], *, num_words: int = WORDS, seed: int = 0) -> BagOfWords:
    """Find the words of a data set.

    Args:
        images: uint8 [n, 3, H, W] batches in an order that does not matter; only the first are read.
        num_words: W; fewer where there are fewer descriptors.
        seed: of the clustering.

    Raises:
        ValueError: if there are no images.
    """
    parts: list[Float32] = []
    for batch in images:
        parts.append(dense_sift(batch).reshape(-1, DESCRIPTOR))
        if sum(map(len, parts)) >= CODEBOOK_DESCRIPTORS:
            break
    if not sum(map(len, parts)):
        raise ValueError("images must hold at least one image; got none.")
    sample = np.concatenate(parts)
    count = min(num_words, len(sample))
    kmeans = faiss.Kmeans(DESCRIPTOR, count, niter=CODEBOOK_ROUNDS, seed=seed, min_points_per_centroid=1)
    kmeans.train(sample)
    return BagOfWords(np.asarray(kmeans.centroids, dtype=np.float32).reshape(count, DESCRIPTOR))


def dense_sift(images: Uint8) -> Float32:
    """RootSIFT descriptors on a grid, float32 [n, P, 128]; their squares sum to 1, or to 0 where nothing changes."""
    sift: Any = cv2.SIFT.create()
    described = [sift.compute(image, KEYPOINTS)[1] for image in luma_images(images)]
    flat = np.asarray(described, dtype=np.float32).reshape(len(images), len(KEYPOINTS), DESCRIPTOR)
    return np.asarray(np.sqrt(flat / np.maximum(flat.sum(axis=-1, keepdims=True), 1.0)), dtype=np.float32)


def _keypoints() -> list[cv2.KeyPoint]:
    places = np.arange(GRID_STEP / 2, LUMA_SIDE, GRID_STEP)
    sizes = [side / SIDE_OF_SIZE for side in PATCH_SIDES]
    return [cv2.KeyPoint(float(x), float(y), size, 0.0) for size in sizes for y in places for x in places]


KEYPOINTS = _keypoints()
