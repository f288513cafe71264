"""Shows that pixels do not depend on the loaders: `python -m tests.bench.digests --images DIR`.

The same draws go through fleets of several sizes, and through one that grows and shrinks under way. The digest covers
every draw's number, sample and pixels in the order in which a trainer gets them. One stream in this process, with one
loader and no Ray, is the reference.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from loader.batch import Batch
from loader.batches.windows import WeightedWindows
from loader.bench.images import shards_of
from loader.config import LoaderConfig, StreamConfig, Transform
from loader.pool import LoaderPool, LocalLoaders
from loader.shards.index import ShardIndex
from loader.shards.index_builder import build_index
from loader.stream import BatchStream
from loader.worker import LoaderWorker
from tests.bench.command import run, say

if TYPE_CHECKING:
    from loader.fleet.actors import FleetClient

SIZES: Final = (1, 2, 4, 8)
"""Loaders of the fleets that keep their size."""
COURSE: Final = (1, 16, 1)
"""Loaders of the fleet that is scaled while the stream runs."""
_STEPS: Final = 16
_BATCH: Final = 64
_SEED: Final = 0
_WINDOW_STEPS: Final = 2
"""A stream looks one window ahead: what was asked before a change of size is soon over."""
_REST_S: Final = 0.3
_JOIN_TIMEOUT_S: Final = 600.0
_CHECK_TIMEOUT_S: Final = 10.0

Progress = Callable[[str], None]


def determinism_digests(
    images: str | Path,
    *,
    sizes: Sequence[int] = SIZES,
    course: Sequence[int] = COURSE,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compare digests over loader actors under Ray, which is started if it does not run.

    Args:
        images: A folder of images, a folder of tars, or a tar.
        sizes: Fleets to compare, in loaders.
        course: Sizes of one more fleet, one after the other in equal shares of the steps.
        progress: Told the name of each stream when it starts.

    Returns:
        "steps", "batch", "fingerprint" of the data, "digests" by name, "served" (loaders of the scaled fleet that had
        requests at the same time), and "equal".
    """
    say = progress or (lambda _: None)
    with tempfile.TemporaryDirectory(prefix="tempera-digests-") as scratch:
        index = build_index(shards_of(Path(images), Path(scratch)), Path(scratch) / "index.parquet")
        say("in process")
        digests = {"in process": _in_process(index)}
        through_fleets, served = _fleets(index, sizes, course, say)
        digests |= through_fleets
    return {
        "steps": _STEPS,
        "batch": _BATCH,
        "fingerprint": index.fingerprint,
        "digests": digests,
        "served": served,
        "equal": len(set(digests.values())) == 1,
    }


def digest(batches: Iterable[Batch]) -> str:
    """Return the SHA-256 of what batches carry: draws, samples and pixels in step order, hex."""
    sha = hashlib.sha256()
    for batch in batches:
        for part in (batch.draws, batch.sample_ids, batch.images.contiguous().numpy()):
            sha.update(part.tobytes())
    return sha.hexdigest()


def _in_process(index: ShardIndex) -> str:
    pool = LocalLoaders([LoaderWorker(index.path, LoaderConfig())])
    try:
        return digest(_stream(index, pool))
    finally:
        pool.close()


def _fleets(
    index: ShardIndex, sizes: Sequence[int], course: Sequence[int], say: Progress
) -> tuple[dict[str, str], int]:
    """Return the digests by name, and how many loaders of the scaled fleet had requests."""
    from loader.actors import RayLoaders
    from loader.fleet.actors import local_fleet

    found = {}
    with local_fleet(index.path, LoaderConfig(), size=min(sizes)) as fleet:
        for size in sizes:
            say(f"{size} loaders")
            scale_to(fleet, size)
            found[f"{size} loaders"] = digest(_stream(index, RayLoaders(fleet)))
        name = f"{' -> '.join(str(size) for size in course)} loaders"
        say(name)
        scale_to(fleet, course[0])
        scaled = _Course(fleet, course)
        found[name] = digest(scaled.scaled(_stream(index, RayLoaders(fleet))))
    return found, scaled.served


@dataclass(slots=True)
class _Course:
    """Batches of a fleet that is scaled between them, with requests for the next ones under way."""

    fleet: FleetClient
    sizes: Sequence[int]
    served: int = 0
    """Most loaders that had requests at the same time."""

    def scaled(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Pass batches on. The reader rests a little after each, so that the stream hears of every change."""
        size = self.sizes[0]
        for batch in batches:
            wanted = self.sizes[batch.step * len(self.sizes) // _STEPS]
            if wanted != size:
                self._count(size)
                size = wanted
                scale_to(self.fleet, size)
            time.sleep(_REST_S)
            yield batch

    def _count(self, size: int) -> None:
        """Count the loaders that had requests; their figures come with their next check."""
        deadline = time.monotonic() + _CHECK_TIMEOUT_S
        while True:
            loaders = self.fleet.status()["loaders"]
            self.served = max(self.served, sum(loader.get("requests", 0) > 0 for loader in loaders))
            if self.served >= size or time.monotonic() > deadline:
                return
            time.sleep(0.1)


def scale_to(fleet: FleetClient, size: int) -> None:
    """Scale a fleet and wait until so many loaders work."""
    fleet.scale(size, author="bench")
    _wait(lambda: len(fleet.members()) == size, f"the fleet did not come to {size} loaders")


def _wait(condition: Callable[[], bool], why: str) -> None:
    deadline = time.monotonic() + _JOIN_TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{why} within {_JOIN_TIMEOUT_S:.0f} s")
        time.sleep(0.1)


def _stream(index: ShardIndex, pool: LoaderPool) -> BatchStream:
    config = StreamConfig(
        seed=_SEED,
        global_batch=_BATCH,
        total_steps=_STEPS,
        window_steps=_WINDOW_STEPS,
        prefetch_steps=2,
        transform=Transform(),
    )
    weights = np.random.default_rng(_SEED).random(len(index))
    return BatchStream(WeightedWindows(weights, config), pool, config)


def digests(*, images: Path) -> dict[str, Any]:
    """Compare the pixels of the same draws through 1, 2, 4 and 8 loaders, and through a fleet that goes 1 -> 16 -> 1.

    Args:
        images: folder of images, folder of tars, or a tar.
    """
    return determinism_digests(images, progress=say)


if __name__ == "__main__":
    sys.exit(not run(digests)["equal"])
