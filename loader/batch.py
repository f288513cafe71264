"""The values between loaders and trainers: a spec that fully determines pixels, its pixels, and a trainer's batch.

Images are `uint8[n, 3, H, W]` in channels-last memory (strides of `[n, H, W, 3]`): decoders write rows of RGB, and no
copy into planes follows. torch and the GPU read this layout as it is; `.contiguous()` gives planes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from loader.config import Transform

if TYPE_CHECKING:
    import torch  # loaders make pixels without it


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchSpec:
    """Everything that decides pixels: any loader returns the same bytes for the same spec."""

    sample_ids: NDArray[np.int64]
    """int64[n], rows of the sample index."""
    draws: NDArray[np.int64]
    """int64[n], the run-wide number of each draw. With `seed` it is the key of the crop's random numbers."""
    seed: int
    transform: Transform
    probability: NDArray[np.float64] | None = None
    """float64[n], each sample's probability per draw, or a higher rate where its next draws are known already. A hint
    for the caches that changes no pixel; None when unknown."""

    def __len__(self) -> int:
        return len(self.sample_ids)


@dataclass(frozen=True, kw_only=True, slots=True)
class BadSample:
    """A sample that could not become pixels, and why."""

    row: int
    """Its position in the spec or batch."""
    sample_id: int
    draw: int
    key: str
    """Name of the sample in its shard."""
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Pixels:
    """A loader's answer to a spec."""

    images: NDArray[np.uint8]
    """uint8[n, 3, H, W], channels-last memory, possibly read-only; bad rows are zero."""
    bad: tuple[BadSample, ...]
    """The rows that failed, in order."""
    decode_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """One optimizer step's images for one trainer rank, and where they came from."""

    images: torch.Tensor
    """uint8[B, 3, H, W], channels-last memory, pinned where CUDA is available."""
    sample_ids: NDArray[np.int64]
    """int64[B], rows of the sample index; a substituted row has the spare's id."""
    draws: NDArray[np.int64]
    """int64[B], run-wide draw numbers."""
    probability: NDArray[np.float64]
    """float64[B], probability with which each sample was drawn, in (0, 1]."""
    version: int
    """Version of the weight table that the draws came from."""
    step: int
    """Optimizer step, from 0."""
    substituted: tuple[BadSample, ...]
    """Bad samples whose rows hold a spare instead."""
    wait_s: float
    """Seconds the trainer waited for this batch."""
