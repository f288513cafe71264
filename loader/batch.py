"""The values that travel: a spec that fully determines pixels, the pixels, and the batch a trainer sees.

Images are `uint8[n, 3, H, W]` in channels-last memory (strides of `[n, H, W, 3]`): decoders write rows of RGB and
nobody copies them into planes. torch and the GPU read this layout as it is; `.contiguous()` gives planes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from loader.cache import NO_DEMAND, Demand
from loader.config import Transform
from loader.decode.header import ImageHeader


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchSpec:
    """Everything that decides pixels: asking any loader for the same spec gives the same bytes."""

    sample_ids: NDArray[np.int64]
    """int64[n], rows of the sample index."""
    draws: NDArray[np.int64]
    """int64[n], the run-wide number of each draw; with `seed` it keys the crop."""
    seed: int
    """Seed of the run."""
    transform: Transform
    """Applied to every image."""
    probability: NDArray[np.float64] | None = None
    """float64[n], how often each sample will be drawn, per draw: its probability, or more where its next draws are
    known. A hint for caches that decides no pixel; None when unknown."""

    def __len__(self) -> int:
        return len(self.sample_ids)

    def take(self, rows: NDArray[np.int64]) -> BatchSpec:
        """Return the spec of some rows, in the order given."""
        return replace(
            self,
            sample_ids=self.sample_ids[rows],
            draws=self.draws[rows],
            probability=None if self.probability is None else self.probability[rows],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class BadSample:
    """A sample that could not become pixels, and why."""

    row: int
    """Position in the spec or batch that asked for it."""
    sample_id: int
    """Row of the sample index."""
    draw: int
    """Draw that met it."""
    key: str
    """Name of the sample in its shard."""
    reason: str
    """What is wrong with it."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """An image on its way to a decoder: bytes whose CRC and header have been checked, and what to cut out."""

    sample_id: int
    """Row of the sample index: names the same bytes always."""
    data: bytes
    """The encoded image."""
    header: ImageHeader
    """What its header says."""
    box: NDArray[np.int32]
    """(top, left, height, width) of the part to resize, in pixels."""
    flip: bool
    """Mirror left to right."""
    demand: Demand = NO_DEMAND
    """How much the sample is wanted, for the cache."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pixels:
    """What a loader returns for a spec."""

    images: NDArray[np.uint8]
    """uint8[n, 3, H, W], channels-last memory, possibly read-only; bad rows are zero."""
    bad: tuple[BadSample, ...]
    """The rows that failed."""
    decode_s: float
    """Seconds the loader spent on it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """What a trainer rank iterates: one optimizer step's images and where they came from."""

    images: torch.Tensor
    """uint8[B, 3, H, W], channels-last memory, pinned when CUDA is there."""
    sample_ids: NDArray[np.int64]
    """int64[B], rows of the sample index; a substituted row carries the spare's id."""
    draws: NDArray[np.int64]
    """int64[B], run-wide draw numbers."""
    probability: NDArray[np.float64]
    """float64[B], probability with which each sample was drawn, in (0, 1]."""
    version: int
    """Version of the weight table that the draws came from."""
    step: int
    """Optimizer step, from 0."""
    substituted: tuple[BadSample, ...]
    """Bad samples whose rows here hold a spare instead."""
    wait_s: float
    """Seconds the trainer waited for this batch."""


def empty_images(num_images: int, size: int, *, pinned: bool = False) -> torch.Tensor:
    """Return uninitialised uint8[n, 3, size, size] in channels-last memory."""
    return torch.empty(num_images, size, size, 3, dtype=torch.uint8, pin_memory=pinned).permute(0, 3, 1, 2)
