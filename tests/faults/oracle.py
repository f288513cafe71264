"""The oracle: what a rank really consumed, written by the consuming side for a checker that trusts nobody else.

One file a rank and incarnation (a start of the rank's process), one JSON line a batch, written before the training loop
gets the batch: draws, samples, probabilities, versions, a hash of every image's pixels, and the substitutions.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from deploy.launch.watched import Stream, WatchedStream
from loader import Batch

HASH_BYTES = 8


class OracleStream(WatchedStream):
    """A stream that writes down each batch before it hands it on."""

    def __init__(self, stream: Stream, folder: Path, *, rank: int) -> None:
        """Begin an incarnation.

        Args:
            stream: what is watched.
            folder: the run's oracle folder; made when there is none.
            rank: of the trainer.
        """
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(stream)
        self._rank = rank
        self._path = folder / f"{time.time_ns()}-{rank}-{os.getpid()}.jsonl"

    def __iter__(self) -> Iterator[Batch]:
        with self._path.open("a") as file, closing(self._stream.__iter__()) as batches:  # type: ignore[type-var]
            for batch in batches:
                file.write(json.dumps(record(batch, self._rank)) + "\n")
                file.flush()  # a killed process loses nothing that it has written
                yield batch


def record(batch: Batch, rank: int) -> dict[str, Any]:
    """One line of the oracle file.

    Args:
        batch: what the trainer is about to consume.
        rank: of the trainer.
    """
    return {
        "step": batch.step,
        "rank": rank,
        "time": time.time(),
        "version": batch.version,
        "draws": batch.draws.tolist(),
        "samples": batch.sample_ids.tolist(),
        "probability": batch.probability.tolist(),
        "pixels": [pixel_hash(image) for image in batch.images.permute(0, 2, 3, 1).numpy()],
        "substituted": [
            {"draw": bad.draw, "sample": bad.sample_id, "key": bad.key, "reason": bad.reason}
            for bad in batch.substituted
        ],
    }


def pixel_hash(image_HWC: np.ndarray[Any, Any]) -> str:
    """Hex digest of one image, uint8[H, W, 3]."""
    return hashlib.blake2b(np.ascontiguousarray(image_HWC).data, digest_size=HASH_BYTES).hexdigest()
