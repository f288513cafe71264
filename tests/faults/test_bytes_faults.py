"""Bytes that go bad between the index and the loader: each costs its own draw, and no wrong pixel is delivered."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deploy.runs.config import DataConfig
from loader import BatchStream, ShardIndex, TooManyBadSamplesError, WeightedWindows
from tests.faults.consuming import CONFIG, consume, in_process, local_loaders, substituted_alone, windows
from tests.samples import with_sides

SPREAD = 97
"""One in so many samples is damaged: about one in a hundred."""
TOLERANT = replace(CONFIG, total_steps=60, max_bad_share=0.05)


def copied(digits: DataConfig, folder: Path) -> ShardIndex:
    """The digits' shards and index, to be damaged."""
    source = ShardIndex.load(digits.index)
    shutil.copytree(source.path.parent, folder)
    return ShardIndex.load(folder / source.path.name)


def weighted(index: ShardIndex) -> WeightedWindows:
    """Uniform draws with spares."""
    return WeightedWindows(np.ones(len(index)), TOLERANT)


def damage(index: ShardIndex, rows: range, spoil) -> frozenset[int]:
    """Change the bytes of some samples in their shards."""
    for row in rows:
        with Path(index.shard_urls[index.shard[row]]).open("r+b") as shard:
            place, size = int(index.offset[row]), int(index.size[row])
            shard.seek(place)
            data = bytearray(shard.read(size))
            spoil(data)
            shard.seek(place)
            shard.write(data)
    return frozenset(rows)


def flip_a_bit(data: bytearray) -> None:
    data[len(data) // 2] ^= 1


def zero(data: bytearray) -> None:
    data[:] = bytes(len(data))


def claim_to_be_huge(data: bytearray) -> None:
    data[:] = with_sides(bytes(data), 20_000, 20_000)


DAMAGE = {"bit flip": flip_a_bit, "zero bytes": zero, "dimension bomb": claim_to_be_huge}


@pytest.mark.parametrize("kind", DAMAGE)
def test_one_bad_sample_in_a_hundred_costs_its_draws_alone(kind, digits, tmp_path, note):
    index = copied(digits, tmp_path / "copy")
    whole = in_process(index, TOLERANT, order=weighted(index), count=2)
    poisoned = damage(index, range(13, len(index), SPREAD), DAMAGE[kind])
    seen = in_process(index, TOLERANT, order=weighted(index), count=2)
    assert {bad["sample"] for line in seen.lines for bad in line["substituted"]} <= poisoned
    substituted = substituted_alone(seen, whole, poisoned.__contains__)
    note(f"bytes: {kind} in 1 % of samples", seen=f"{substituted} draws substituted and listed, no other changed")


def test_without_the_checksum_a_flipped_bit_is_delivered(digits, tmp_path, monkeypatch):
    index = copied(digits, tmp_path / "copy")
    damage(index, range(13, len(index), SPREAD), flip_a_bit)
    monkeypatch.setattr("loader.shards.reader.zlib.crc32", lambda data, start=0: 0)
    monkeypatch.setattr(ShardIndex, "read", lambda self, row, reader: reader.read(
        int(self.shard[row]), int(self.offset[row]), int(self.size[row]), 0
    ))  # fmt: skip
    spoiled = in_process(index, TOLERANT, order=weighted(index))
    assert not all(line["substituted"] for line in spoiled.lines)
    delivered = {sample for line in spoiled.lines for sample in line["samples"]}
    assert delivered & set(range(13, len(index), SPREAD)), "a damaged sample was delivered as if it were whole"


def test_a_burst_of_bad_samples_stops_the_run_soon_with_a_report(digits, tmp_path, note):
    index = copied(digits, tmp_path / "copy")
    order = windows(len(index), CONFIG)
    late = order.window(1).sample_ids  # all that is drawn from the second window on
    damage(index, late.tolist(), zero)
    steps: list[int] = []
    with (
        local_loaders(str(index.path), 2) as pool,
        pytest.raises(TooManyBadSamplesError, match=r"CRC-32 mismatch.*tempera shards verify"),
    ):
        consume(BatchStream(order, pool, CONFIG), steps.append)
    after = max(0, len(steps) - CONFIG.window_steps) * CONFIG.global_batch
    assert after < 200
    note("a burst of errors", goal="200 draws", seen=f"stopped {after} draws after the first bad one")


def test_without_the_limit_a_burst_trains_on_what_is_left(digits, tmp_path, monkeypatch):
    index = copied(digits, tmp_path / "copy")
    order = windows(len(index), CONFIG)
    damage(index, order.window(1).sample_ids.tolist(), zero)
    monkeypatch.setattr("loader.batches.substitution.BadSampleLimit.add", lambda self, bad: None)
    assert len(in_process(index, order=order, count=2).lines) == CONFIG.total_steps


@pytest.mark.faults
def test_one_bad_sample_in_a_hundred_costs_little_throughput(digits, tmp_path, note):
    config = replace(TOLERANT, total_steps=200)
    index = copied(digits, tmp_path / "copy")

    def seconds() -> float:
        started = time.process_time()
        in_process(index, config)
        return time.process_time() - started

    clean = min(seconds() for _ in range(3))
    damage(index, range(13, len(index), SPREAD), flip_a_bit)
    bad = min(seconds() for _ in range(3))
    note("1 % bad samples", goal="90 % of throughput", seen=f"{clean / bad:.0%} (processor seconds)")
    assert clean / bad > 0.9
