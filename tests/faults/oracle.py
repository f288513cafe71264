"""The oracle: what each rank really consumed, written by the consuming side for a checker that trusts nothing else.

A run that names this module in its `extensions` is recorded: the training loop raises the audit event `tempera.batch`
before it uses a batch, and this module's hook writes one JSON line of draws, samples, probabilities, versions, a hash
of every image's pixels, and the substitutions. One file for each rank and each call of `train` (an incarnation), in
oracle/ of the run directory.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from loader import Batch

EVENT = "tempera.batch"
HASH_BYTES = 8
RECORDED = f'extensions=["{__name__}"]'
"""Override that makes a run write its oracle files."""


class Oracle:
    """The hook of one process, which may train several runs one after the other."""

    def __init__(self) -> None:
        self._loop: object = None
        self._file: TextIO | None = None

    def __call__(self, event: str, details: tuple[Any, ...]) -> None:
        """Write the batch down; a killed process loses nothing that it has written."""
        if event != EVENT:
            return
        loop, run_dir, rank, batch = details
        if loop is not self._loop:
            self._begin(loop, Path(run_dir), rank)
        if self._file is not None:
            self._file.write(json.dumps(record(batch, rank)) + "\n")
            self._file.flush()

    def _begin(self, loop: object, run_dir: Path, rank: int) -> None:
        if self._file is not None:
            self._file.close()
        self._loop, self._file = loop, None
        config = run_dir / "config.json"
        # The hook stays for the process's life: runs that did not ask for it are left alone.
        if config.is_file() and __name__ in json.loads(config.read_text())["extensions"]:
            (run_dir / "oracle").mkdir(exist_ok=True)
            self._file = (run_dir / "oracle" / f"{time.time_ns()}-{rank}-{os.getpid()}.jsonl").open("a")


def record(batch: Batch, rank: int) -> dict[str, Any]:
    """Return one line of an oracle file: what the trainer is about to consume."""
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
    """Return the hex digest of one image, uint8[H, W, 3]."""
    return hashlib.blake2b(np.ascontiguousarray(image_HWC).data, digest_size=HASH_BYTES).hexdigest()


sys.addaudithook(Oracle())
