"""A small object store, a full one, and a trainer slower than its loaders: the run sees the same, in bounded memory.

Digests of every pixel are compared with a run in this process: a stronger statement than the checker's samples.
"""

# Ray reads its authentication settings when it is imported, so every import of it follows the fixture that sets them.

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loader import BatchStream, LoaderConfig, ShardIndex, StreamConfig, Transform
from tests.faults.consuming import CONFIG, Consumed, consume, in_process, windows
from tests.local_ray import local_ray

STORE_BYTES = 80 << 20
"""Ray takes no less than 75 MiB."""
LARGE = replace(CONFIG, transform=Transform(size=224), total_steps=60, prefetch_steps=4)
STEP_BYTES = LARGE.global_batch * 3 * LARGE.transform.size**2
LOADERS = 2
GROUP_STEPS = LARGE.min_request_images * LOADERS // LARGE.global_batch
"""Steps that are asked for together, so that each loader gets enough images at once."""
AHEAD_BYTES = (LARGE.prefetch_steps + 2 * GROUP_STEPS) * STEP_BYTES + (1 << 20)
"""What may lie in the store: what is asked for ahead, the group in use, the group before it on its way out."""
FILLING = 9
"""Objects of an eighth of the store that somebody else puts there."""
SLOW_S = 0.2
GOAL_S = 8.0

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.timeout(600)]


@dataclass
class Watched:
    """What a stream left in the store and in its loaders."""

    seen: Consumed
    spilled_bytes: int
    store_bytes: list[int] = field(default_factory=list)
    loader_bytes: list[int] = field(default_factory=list)
    wait_s: float = 0.0


@pytest.fixture(scope="module")
def expected(index: ShardIndex) -> str:
    return in_process(index, LARGE).digest


@pytest.fixture
def ray() -> Iterator[Any]:
    """A Ray of its own with little room for objects, and nothing in it."""
    with local_ray(object_store_memory=STORE_BYTES) as ray:
        yield ray


def store() -> Any:
    """What Ray says of its object store."""
    from ray._private import internal_api, state

    return internal_api.get_memory_info_reply(state.state).store_stats


def private_bytes(pid: int) -> int:
    """Memory of a process that it shares with nobody."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:"))


def watched(
    index: ShardIndex,
    *,
    config: StreamConfig = LARGE,
    ring_bytes: int = 0,
    step_s: float = 0.0,
    on_step: Callable[[int], object] = lambda step: None,
) -> Watched:
    """Consume a stream from two loaders, and look at the store and the loaders at every step."""
    from loader.actors import RayLoaders
    from loader.fleet.actors import start_fleet

    stored: list[int] = []
    held: list[int] = []
    with closing(start_fleet(index.path, LoaderConfig(), size=LOADERS, num_cpus=0)) as fleet:
        pids = [one["pid"] for one in fleet.status()["loaders"]]

        def look(step: int) -> None:
            on_step(step)
            stored.append(store().object_store_bytes_used)
            held.append(sum(map(private_bytes, pids)))

        stream = BatchStream(windows(len(index), config), RayLoaders(fleet, ring_bytes=ring_bytes), config)
        seen = consume(stream, look, step_s=step_s)
        spilled = int(store().spilled_bytes_total)
    return Watched(seen, spilled, stored, held, float(stream.stats()["wait_s"]))


def test_a_small_store_is_enough_and_nothing_is_spilled(ray, index, expected, note):
    through = LARGE.total_steps * STEP_BYTES
    assert ray.cluster_resources()["object_store_memory"] == STORE_BYTES, "the store is small"
    assert through > 3 * STORE_BYTES, "a store that keeps everything would not do"
    run = watched(index)
    assert run.seen.digest == expected
    assert run.spilled_bytes == 0
    words = (
        f"{through >> 20} MiB through {STORE_BYTES >> 20}, at most {max(run.store_bytes) >> 20} in use, none spilled"
    )
    note("object store small", goal="no spill", seen=words)


@pytest.mark.parametrize("ring_bytes", [0, 256 << 20], ids=["through the store", "through the ring"])
def test_a_store_that_others_fill_in_mid_run_changes_nothing(ring_bytes, ray, index, expected, note):
    others: list[Any] = []
    full: list[float] = []

    def fill(step: int) -> None:
        if step == 20:
            others.extend(ray.put(np.zeros(STORE_BYTES // 8, np.uint8)) for _ in range(FILLING))
            full.append(time.monotonic())

    run = watched(index, ring_bytes=ring_bytes, on_step=fill)
    assert run.spilled_bytes > 0, "the fault fired: the store was full, so Ray wrote objects to the disk"
    assert run.seen.digest == expected
    waited = run.seen.longest_wait(full[0])
    assert waited < GOAL_S
    way = "ring" if ring_bytes else "store"
    words = f"{FILLING * 100 // 8} % of it taken by others, {run.spilled_bytes >> 20} MiB spilled"
    note(f"object store full, pixels by the {way}", recovery_s=[waited], goal=f"{GOAL_S:g} s", seen=words)


def test_a_slow_trainer_makes_nothing_grow(ray, index, expected, note):
    run = watched(index, step_s=SLOW_S)
    assert run.wait_s < 0.5 * SLOW_S * LARGE.total_steps, "the fault fired: loaders wait for the trainer"
    assert run.seen.digest == expected
    assert run.spilled_bytes == 0
    assert max(run.store_bytes) <= AHEAD_BYTES
    half = LARGE.total_steps // 2
    growth = max(run.loader_bytes[half:]) - max(run.loader_bytes[:half])
    assert growth < STEP_BYTES, "loaders keep nothing for a trainer that is late"
    words = f"at most {max(run.store_bytes) >> 20} MiB in the store, none spilled, loaders +{max(growth, 0) >> 20} MiB"
    note(f"slow trainer ({SLOW_S:g} s a step)", goal="bounded, no spill", seen=words)


def test_without_a_bound_on_what_is_asked_ahead_a_slow_trainer_fills_the_store(ray, index, expected):
    run = watched(index, config=replace(LARGE, prefetch_steps=60, window_steps=30), step_s=SLOW_S)
    assert run.seen.digest == expected
    assert max(run.store_bytes) > AHEAD_BYTES
    assert run.spilled_bytes > 0
