"""Passes over a data set, each sample once: in this process (`sweep`), or through a run's loaders (`each_once`).

Both use the evaluation crop, without randomness, so that features, selection rounds, probes and pictures see the same
pixels.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from loader.batch import BatchSpec
from loader.batches.windows import FixedWindows
from loader.config import LoaderConfig, StreamConfig, Transform, evaluation_transform
from loader.pool import LoaderPool
from loader.shards.index import ShardIndex
from loader.stream import BatchStream
from loader.worker import LoaderWorker

__all__ = ["SWEEP_IMAGES", "each_once", "evaluation_transform", "sweep"]

SWEEP_IMAGES = 256
"""Images decoded at once."""


def sweep(
    index_path: Path, transform: Transform, *, ids: NDArray[np.int64] | None = None
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8], list[str]]]:
    """Decode each sample, or only those of `ids` (int64[n]) in their order, once in this process on every core.

    Yields:
        (ids int64[n], images uint8[n,3,H,W] with zeros for bad samples, one line for each bad sample).
    """
    index = ShardIndex.load(index_path)
    wanted = np.arange(len(index)) if ids is None else ids
    worker = LoaderWorker(index_path, LoaderConfig(threads=len(os.sched_getaffinity(0))))
    # In parts, so that a pass over a data set needs no more memory than a batch.
    for start in range(0, len(wanted), SWEEP_IMAGES):
        part = wanted[start : start + SWEEP_IMAGES]
        pixels = worker.load(BatchSpec(sample_ids=part, draws=part, seed=0, transform=transform))
        yield part, pixels.images, [f"{sample.key}: {sample.reason}" for sample in pixels.bad]


def each_once(
    ids: NDArray[np.int64], loaders: LoaderPool, *, transform: Transform
) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
    """Read samples once through loaders, in the order given; samples that cannot be decoded are left out.

    Yields:
        (sample ids int64[m], images uint8[m,3,H,W]).
    """
    # A stream stops at too many bad samples; a pass leaves them out, however many they are.
    steps = math.ceil(len(ids) / SWEEP_IMAGES)
    config = StreamConfig(seed=0, global_batch=SWEEP_IMAGES, total_steps=steps, transform=transform, max_bad_share=1.0)
    for batch in BatchStream(FixedWindows(ids, config), loaders, config):
        # The last batch is filled up with samples from the beginning, and bad samples are black, since a
        # fixed order has no spares: drop both.
        good = np.arange(min(SWEEP_IMAGES, len(ids) - batch.step * SWEEP_IMAGES))
        good = np.setdiff1d(good, [sample.row for sample in batch.substituted])
        yield batch.sample_ids[good], batch.images[good]
