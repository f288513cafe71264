"""Labelled images out of shards, through the loader: each once in order, or shuffled and augmented epochs.

A batch of an epoch is a pure function of (seed, step): which samples, which crop of each. So a training evaluation can
stop anywhere and continue with the same batches.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loader import BatchSpec, LoaderConfig, LoaderWorker, ShardIndex, Transform
from trainer.config import require

T = TypeVar("T")
MAX_CLASSES = 1 << 17
"""Six times the classes of ImageNet-21k; a larger label is a mistake, or meant to exhaust the memory."""
EVALUATION_SHARE = 256 / 224
"""Short side over the crop's side, for central crops of 64 pixels or more; smaller images are not cut."""


def center_crop(size: int) -> Transform:
    """Return the evaluation crop: short side resized to 256/224 of the size, the middle cut out.

    Below 64 pixels the short side becomes the size, so that a square image is not cut at all.
    """
    return Transform(
        kind="center_crop", size=size, short_side=round(size * EVALUATION_SHARE) if size >= 64 else size, flip=False
    )


class LabelledShards:
    """The labelled samples of an index.

    A row is a sample's place among them, from 0. At most `most` are taken, evenly spread; 0 takes all.

    Raises:
        ValueError: no sample has a label.
    """

    def __init__(self, index: str | Path, *, most: int = 0) -> None:
        self.path = str(index)
        table = ShardIndex.load(index)
        ids = np.flatnonzero(table.label >= 0)
        require(
            len(ids) > 0,
            f"this evaluation needs labels; {index} has none (no .cls members in its shards). Build shards from class "
            "folders.",
        )
        if most and most < len(ids):
            ids = ids[np.linspace(0, len(ids) - 1, most).round().astype(np.int64)]
        self.ids: NDArray[np.int64] = ids.astype(np.int64)
        self.labels: NDArray[np.int64] = table.label[ids].astype(np.int64)
        self.bad: list[str] = []
        self._worker = LoaderWorker(self.path, LoaderConfig(threads=len(os.sched_getaffinity(0))))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_classes(self) -> int:
        """One above the largest label.

        Raises:
            ValueError: a label is too large for a class number.
        """
        largest = int(self.labels.max())
        require(largest < MAX_CLASSES, f"labels must be below {MAX_CLASSES}; got {largest}. Number the classes from 0.")
        return largest + 1

    def load(
        self, rows: NDArray[np.integer[Any]], transform: Transform, *, seed: int = 0, draws: Any = None
    ) -> tuple[Tensor, Tensor, NDArray[np.int64]]:
        """Return (images uint8[n, 3, H, W], labels int64[n], rows int64[n]) of samples by row.

        Samples that cannot be decoded are left out and listed in `bad`. Random crops are a function of `seed` and of
        `draws`, a number for each; the rows by default, so that a repeated call repeats them.
        """
        rows = np.asarray(rows, np.int64)
        draws = rows if draws is None else np.asarray(draws, np.int64)
        pixels = self._worker.load(BatchSpec(sample_ids=self.ids[rows], draws=draws, seed=seed, transform=transform))
        self.bad += [f"{sample.key}: {sample.reason}" for sample in pixels.bad]
        good = np.setdiff1d(np.arange(len(rows)), [sample.row for sample in pixels.bad])
        images = torch.as_tensor(pixels.images)
        images = images if len(good) == len(rows) else images[good]  # indexing copies: only where it must
        return images, torch.from_numpy(self.labels[rows[good]]), rows[good]

    def in_order(self, transform: Transform, *, batch: int = 256) -> Iterator[tuple[Tensor, Tensor, NDArray[np.int64]]]:
        """Yield (images, labels, rows) of all samples once, in order, read ahead by one batch; see `load`."""
        rows = np.arange(len(self))
        batches = range(-(-len(self) // batch))
        yield from ahead(lambda i: self.load(rows[i * batch : (i + 1) * batch], transform), batches)

    def epoch_steps(self, batch: int) -> int:
        """Return the whole batches of an epoch.

        Raises:
            ValueError: the batch is larger than the data set.
        """
        require(
            1 <= batch <= len(self),
            f"batch must be in 1..{len(self)} (labelled images); got {batch}. Try {min(batch, len(self))}.",
        )
        return len(self) // batch

    def train_batch(self, step: int, transform: Transform, *, batch: int, seed: int) -> tuple[Tensor, Tensor]:
        """Return the images and labels of a training step, randomly cropped.

        Epochs are permutations; the last partial batch of each is dropped.
        """
        epoch, place = divmod(step, self.epoch_steps(batch))
        order = np.random.default_rng([seed, epoch]).permutation(len(self))
        rows = order[place * batch : (place + 1) * batch]
        # A sample is drawn again in the next epoch: its crop is numbered by the draw, not by the sample.
        images, labels, _ = self.load(rows, transform, seed=seed, draws=step * batch + np.arange(len(rows)))
        return images, labels


def ahead(make: Callable[[int], T], steps: range) -> Iterator[T]:
    """Yield make(step) for each step; the next is made in a thread while the caller uses this one."""
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as pool:
        waiting = pool.submit(make, steps.start) if steps else None
        for step in steps:
            assert waiting is not None
            result = waiting.result()
            # Submitted before the yield, so that the thread works while the caller does.
            waiting = pool.submit(make, step + 1) if step + 1 < steps.stop else None
            yield result
