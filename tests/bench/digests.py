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
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
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
from tests.runs import wait_for

if TYPE_CHECKING:
    from loader.fleet.actors import FleetClient

SIZES: Final = (1, 2, 4, 8)
"""Loaders of the fleets that keep their size."""
COURSE: Final = (1, 16, 1)
"""Loaders of the fleet that is scaled while the stream runs."""
_STEPS: Final = 16
_BATCH: Final = 64
_SEED: Final = 0
_REST_S: Final = 0.3
_CHECK_TIMEOUT_S: Final = 10.0


def digests(*, images: Path, sizes: tuple[int, ...] = SIZES, course: tuple[int, ...] = COURSE) -> dict[str, Any]:
    """Compare the pixels of the same draws through loader actors under Ray, which is started if it does not run.

    Returns "digests" by name of the stream, "served" (loaders of the scaled fleet that had requests at the same time),
    and "equal".

    Args:
        images: folder of images, folder of tars, or a tar.
        sizes: fleets to compare, in loaders.
        course: sizes of one more fleet, one after the other in equal shares of the steps.
    """
    with tempfile.TemporaryDirectory(prefix="tempera-digests-") as scratch:
        index = build_index(shards_of(images, Path(scratch)), Path(scratch) / "index.parquet")
        say("in process")
        with closing(LocalLoaders([LoaderWorker(index.path, LoaderConfig())])) as pool:
            found = {"in process": digest(_stream(index, pool))}
        through_fleets, served = _fleets(index, sizes, course)
        found |= through_fleets
    equal = len(set(found.values())) == 1
    facts = {"steps": _STEPS, "batch": _BATCH, "fingerprint": index.fingerprint}
    return facts | {"digests": found, "served": served, "equal": equal}


def digest(batches: Iterable[Batch]) -> str:
    """Return the SHA-256 of what batches carry: draws, samples and pixels in step order, hex."""
    sha = hashlib.sha256()
    for batch in batches:
        for part in (batch.draws, batch.sample_ids, batch.images.contiguous().numpy()):
            sha.update(part.tobytes())
    return sha.hexdigest()


def _fleets(index: ShardIndex, sizes: Sequence[int], course: Sequence[int]) -> tuple[dict[str, str], int]:
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
    wait_for(lambda: len(fleet.members()) == size, f"a fleet of {size} loaders", patience_s=600)


def _stream(index: ShardIndex, pool: LoaderPool) -> BatchStream:
    config = StreamConfig(
        seed=_SEED, global_batch=_BATCH, total_steps=_STEPS, window_steps=2, prefetch_steps=2, transform=Transform()
    )  # a stream looks one window ahead: what was asked before a change of size is soon over
    weights = np.random.default_rng(_SEED).random(len(index))
    return BatchStream(WeightedWindows(weights, config), pool, config)


if __name__ == "__main__":
    sys.exit(not run(digests)["equal"])
