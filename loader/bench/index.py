"""Measures the sample index: how fast shards are indexed, and what opening an index of ImageNet's size costs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from loader.shards.index import ShardIndex, write_index
from loader.shards.index_builder import build_index
from loader.shards.index_checks import COLUMNS

IMAGENET_SAMPLES: Final = 1_281_167
_SAMPLES_A_SHARD: Final = 1_000
_CHILD: Final = """
import dataclasses, json, sys
from loader.bench.index import open_cost
sys.stdout.write(json.dumps(dataclasses.asdict(open_cost(sys.argv[1]))))
"""
_CHILD_TIMEOUT_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class OpenCost:
    """Cost of opening an index when the libraries are loaded already."""

    seconds: float
    held_bytes: int
    """Memory of the process beyond what it held before."""
    peak_bytes: int
    """Largest such memory on the way; equal to `held_bytes` where the system does not report it."""


def bench_index(
    tars: Sequence[Path], scratch: Path, *, seconds: float, num_samples: int = IMAGENET_SAMPLES
) -> dict[str, float]:
    """Measure indexing tars again and again for some seconds, and opening an index of `num_samples`, on one core.

    The caller removes the indexes from the scratch folder.

    Returns:
        index_build_mb_per_s (from page cache), index_open_s, index_open_mb (what stays in memory) and
        index_open_peak_mb (the most on the way).
    """
    num_bytes, started, spent = 0, time.perf_counter(), 0.0
    while spent < seconds:
        build_index(tars, scratch / "again.parquet")
        num_bytes += sum(path.stat().st_size for path in tars)
        spent = time.perf_counter() - started
    large = write_large_index(scratch / "large.parquet", num_samples)
    cost = fresh_open_cost(large)
    return {
        "index_build_mb_per_s": num_bytes / spent / 1e6,
        "index_open_s": cost.seconds,
        "index_open_mb": cost.held_bytes / 1e6,
        "index_open_peak_mb": cost.peak_bytes / 1e6,
    }


def write_large_index(path: Path, num_samples: int) -> Path:
    """Write an index of random values over shards of a thousand samples, and return its path."""
    rng = np.random.default_rng(0)
    number = np.arange(num_samples)
    size = rng.integers(60_000, 160_000, num_samples)
    values = {
        "shard": number // _SAMPLES_A_SHARD,
        "offset": 512 + (number % _SAMPLES_A_SHARD) * 161_280,
        "size": size,
        "crc32": rng.integers(0, 2**32, num_samples),
        "width": rng.integers(200, 600, num_samples),
        "height": rng.integers(200, 600, num_samples),
        "label": rng.integers(0, 1000, num_samples),
    }
    num_shards = -(-num_samples // _SAMPLES_A_SHARD)
    write_index(
        path,
        {name: values[name].astype(kind) for name, kind in COLUMNS.items()},
        [f"n{i % 1000:08d}_{i}" for i in range(num_samples)],
        shard_urls=[f"train-{i:06d}.tar" for i in range(num_shards)],
        shard_bytes=[162 << 20] * num_shards,
        class_names=[f"n{i:08d}" for i in range(1000)],
    )
    return path


def fresh_open_cost(path: Path) -> OpenCost:
    """Measure opening an index in a fresh process: here, memory that was freed before would hide the cost."""
    command = [sys.executable, "-c", _CHILD, str(path)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=_CHILD_TIMEOUT_S)  # noqa: S603 - ours
    return OpenCost(**json.loads(answer.stdout))


def open_cost(path: str) -> OpenCost:
    """Measure opening an index in this process, after a small one whose libraries and buffers stay."""
    with tempfile.TemporaryDirectory() as scratch:
        ShardIndex.load(write_large_index(Path(scratch) / "warm.parquet", 1000))
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak, VmHWM
    before, started = _memory("VmRSS"), time.perf_counter()
    index = ShardIndex.load(path)
    spent = time.perf_counter() - started
    held, peak = _memory("VmRSS") - before, _memory("VmHWM") - before
    assert len(index)
    return OpenCost(spent, held, max(held, peak))


def _memory(field: str) -> int:
    """Return a field of this process's status, in bytes."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) << 10 if found else 0
