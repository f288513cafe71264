"""A consumer that notes when each batch came and what was in it, and what the batches should have been.

Streams are judged by the digest of every draw, sample and pixel hash, compared with a run that nothing befell: a
stronger statement than the checker's, which decodes some samples again and has no such run to compare with.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

import numpy as np

from loader import (
    Batch,
    BatchStream,
    FixedWindows,
    LoaderConfig,
    LoaderWorker,
    LocalLoaders,
    ShardIndex,
    StreamConfig,
    Transform,
)
from tests.faults.oracle import record
from tests.integration.checker import digest

CONFIG = StreamConfig(seed=11, global_batch=32, total_steps=40, window_steps=8, transform=Transform(size=32))


@dataclass
class Consumed:
    """What a trainer would have seen."""

    lines: list[dict[str, object]] = field(default_factory=list)
    moments: list[float] = field(default_factory=list)

    @property
    def digest(self) -> str:
        return digest(self.lines)

    def first_after(self, moment: float) -> float:
        """Seconds from a moment to the next batch."""
        return min(came for came in self.moments if came > moment) - moment

    def longest_wait(self, since: float, until: float = math.inf) -> float:
        """The longest time without a batch between two moments."""
        pairs = zip(self.moments, self.moments[1:], strict=False)
        return max(after - max(before, since) for before, after in pairs if after > since and before < until)


def consume(
    batches: Iterable[Batch], on_step: Callable[[int], object] = lambda step: None, *, step_s: float = 0.0
) -> Consumed:
    """Take every batch."""
    seen = Consumed()
    for batch in batches:
        seen.lines.append(record(batch, 0))
        seen.moments.append(time.monotonic())
        on_step(batch.step)
        time.sleep(step_s)
    return seen


def windows(num_samples: int, config: StreamConfig = CONFIG) -> FixedWindows:
    """Every sample in a shuffled order, over and over."""
    return FixedWindows(np.random.default_rng(3).permutation(num_samples), config)


@contextmanager
def local_loaders(
    index: str, count: int, make: Callable[[str, LoaderConfig], LoaderWorker] = LoaderWorker, **options: object
) -> Iterator[LocalLoaders]:
    """Loaders in this process."""
    pool = LocalLoaders([make(index, LoaderConfig(**options)) for _ in range(count)])
    with closing(pool):
        yield pool


def in_process(
    index: ShardIndex, config: StreamConfig = CONFIG, *, order: object = None, count: int = 1, **options: object
) -> Consumed:
    """Consume a whole stream from loaders in this process, the reference of what a run under faults must see."""
    with local_loaders(str(index.path), count, **options) as pool:
        return consume(BatchStream(order or windows(len(index), config), pool, config))


def substituted_alone(seen: Consumed, whole: Consumed, is_bad: Callable[[int], bool]) -> int:
    """Check that draws of bad samples were substituted and no others; return how many."""
    total = 0
    for line, before in zip(seen.lines, whole.lines, strict=True):
        replaced = {bad["draw"] for bad in line["substituted"]}
        for draw, sample, pixels, meant, right in zip(
            line["draws"], line["samples"], line["pixels"], before["samples"], before["pixels"], strict=True
        ):
            assert not is_bad(sample)
            assert (draw in replaced) == is_bad(meant)
            assert pixels == right or draw in replaced
        total += len(replaced)
    assert total > 0, "the fault fired"
    return total
