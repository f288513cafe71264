"""Nearest-neighbour accuracy of a frozen encoder on a run's own images: does the curriculum help?

The decoded images are kept in memory as bytes; each evaluation embeds them anew. Without a held-out index the
training images classify each other, each one leaving itself out.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from deploy.studies.prototypes.job import evaluation_transform, sweep
from loader import ShardIndex
from trainer.evaluate.knn import embed_pools, nearest_neighbour_accuracy

LARGEST_GALLERY, LARGEST_TEST = 5_000, 5_000
"""Images at most. The accuracy's standard error is 0.7 points at a third right; at 1,000 test images, 1.5, by which
two curves that RAUC compares had changed places.
"""
EMBEDDED_AT_ONCE = 256


class Labelled:
    """Decoded images with their labels, at most so many, evenly taken.

    Raises:
        ValueError: the index has no labels.
    """

    def __init__(self, index_path: Path, *, size: int, most: int) -> None:
        index = ShardIndex.load(index_path)
        ids = np.flatnonzero(index.label >= 0)
        if not len(ids):
            raise ValueError(
                f"nearest-neighbour accuracy needs labels; {index_path} has none (no .cls members in its shards)."
            )
        ids = ids[np.linspace(0, len(ids) - 1, min(most, len(ids))).round().astype(np.int64)]
        images: list[NDArray[np.uint8]] = []
        for _, batch, bad in sweep(index_path, evaluation_transform(size), ids=ids):
            if bad:
                raise ValueError(f"cannot evaluate on {index_path}: {bad[0]}")
            images.append(batch)
        self.images: NDArray[np.uint8] = np.concatenate(images)
        """uint8[n,3,size,size]."""
        self.labels: NDArray[np.int64] = index.label[ids].astype(np.int64)
        """int64[n]."""

    def batches(self) -> Iterator[torch.Tensor]:
        """The images as uint8 tensors of a few hundred."""
        for start in range(0, len(self.images), EMBEDDED_AT_ONCE):
            yield torch.from_numpy(np.ascontiguousarray(self.images[start : start + EMBEDDED_AT_ONCE]))

    def flat(self) -> NDArray[np.float32]:
        """The pixels as vectors in [0, 1], float32[n, 3 * size * size]."""
        return self.images.reshape(len(self.images), -1).astype(np.float32) / np.float32(255)


class NearestNeighbourProbe:
    """Cosine 1-NN accuracy of an encoder, called by the training loop."""

    def __init__(self, index: Path, test_index: Path | None, *, size: int) -> None:
        """Name the images.

        Args:
            index: labelled training images, the gallery.
            test_index: held-out images, or None for leave-one-out on the gallery.
            size: side of the crop in pixels.
        """
        self._sources, self._size = (index, test_index), size

    @cached_property
    def gallery(self) -> Labelled:
        """The images that classify, decoded at the first use: ranks that never evaluate decode nothing."""
        return Labelled(self._sources[0], size=self._size, most=LARGEST_GALLERY)

    @cached_property
    def test(self) -> Labelled:
        """The images to classify."""
        held_out = self._sources[1]
        return self.gallery if held_out is None else Labelled(held_out, size=self._size, most=LARGEST_TEST)

    def __call__(self, step: int, model: torch.nn.Module) -> dict[str, float]:
        """Accuracy with the CLS token and with the mean of the patch tokens."""
        gallery = embed_pools(model, self.gallery.batches())
        test = gallery if self.test is self.gallery else embed_pools(model, self.test.batches())
        return {f"nn_{pool}": self._nearest(gallery[pool], test[pool]) for pool in gallery}

    def pixels(self) -> float:
        """Accuracy of the raw pixels, the floor to beat."""
        return self._nearest(self.gallery.flat(), self.test.flat())

    def _nearest(self, gallery: NDArray[np.float32], test: NDArray[np.float32]) -> float:
        alone = self.test is self.gallery
        return nearest_neighbour_accuracy(gallery, self.gallery.labels, test, self.test.labels, exclude_self=alone)
