"""Looks at a run's encoder while it trains: nearest-neighbour accuracy, pictures, and the run's report page.

`NearestNeighbourProbe` runs every `evaluate_every` steps and needs labels; without held-out images the training images
classify each other, each one leaving itself out. `ReportPictures` draws at the start, in the middle and at the end of
every run, and needs no labels.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from deploy.report.run import write_run_report
from deploy.runs.config import RunConfig
from deploy.runs.rundir import RunDir
from loader import ShardIndex
from loader.sweep import evaluation_transform, sweep
from trainer import Method
from trainer.evaluate.knn import embed_pools, nearest_neighbour_accuracy
from trainer.record.pictures import Pictures

log = logging.getLogger(__name__)

SHOWN_IMAGES = 6
"""Rows of a picture."""
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


def probe_of(config: RunConfig) -> NearestNeighbourProbe:
    """Return the probe of a run's own images."""
    data = config.data
    test_index = None if data.test_index is None else Path(data.test_index)
    return NearestNeighbourProbe(Path(data.index), test_index, size=config.train.model.image_size)


class ReportPictures:
    """Draws what the method does to a few images, and writes the report page anew."""

    def __init__(self, config: RunConfig, run: RunDir) -> None:
        self._config, self._run = config, run

    @cached_property
    def _images(self) -> NDArray[np.uint8]:
        """A few held-out images, or training images where there are none, uint8[n,3,H,W]."""
        path = Path(self._config.data.test_index or self._config.data.index)
        count = len(ShardIndex.load(path))
        shown = np.unique(np.linspace(0, count - 1, min(SHOWN_IMAGES, count)).round().astype(np.int64))
        transform = evaluation_transform(self._config.train.model.image_size)
        return np.concatenate([images for _, images, _ in sweep(path, transform, ids=shown)])

    def __call__(self, step: int, method: Method) -> None:
        """Draw and write; training goes on when that fails, and the log says why."""
        try:
            Pictures(self._config.train, self._images, self._run.report)(step, method)
            write_run_report(self._run, self._config)
        except Exception:
            log.warning("the pictures of step %d could not be drawn", step, exc_info=True)
