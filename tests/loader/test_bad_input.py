"""What can be wrong with shards: each is an error that says so, or costs one draw; none gives a wrong pixel."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from loader import (
    BadShardError,
    BatchSpec,
    LoaderConfig,
    LoaderWorker,
    ShardIndex,
    StaleIndexError,
    Transform,
    build_index,
)
from tests.samples import encoded, scan_bomb, tar_of, with_sides, with_size_field


def boundary(tar: bytes) -> int:
    """Where the second member's header starts."""
    size = int(tar[124:135], 8)
    return 512 + -(-size // 512) * 512


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda tar: tar[: len(tar) // 3], "truncated"),
        (lambda tar: tar[: boundary(tar)], "no end-of-archive marker"),
        (lambda tar: np.random.default_rng(0).bytes(50_000), "not a valid tar"),
        (lambda tar: with_size_field(tar, b"\xff" * 12), "unreadable member size"),
        (lambda tar: with_size_field(tar, b"\x80" + (2**70).to_bytes(11, "big")), "does not fit"),
        (lambda tar: with_size_field(tar, b"77777777777\0"), "does not fit"),
        (lambda tar: tar[: boundary(tar)] + tar, r"holds 'photo000\.cls' twice"),
        (lambda tar: b"", "truncated"),
    ],
    ids=["truncated", "member boundary", "garbage", "negative", "huge", "large", "duplicate keys", "empty"],
)
def test_a_bad_tar_is_not_indexed(photo_index, tmp_path, spoil, message):
    shard = tmp_path / "x.tar"
    good = Path(photo_index.shard_urls[0])
    shard.write_bytes(spoil(good.read_bytes()))
    with pytest.raises(BadShardError, match=message):
        build_index([shard], tmp_path / "i.parquet")
    assert not (tmp_path / "i.parquet").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.unlink(), "missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-2048]), "bytes, not"),
        (lambda path: path.write_bytes(b""), "has 0 bytes"),
        (lambda path: path.write_bytes(path.read_bytes()[1024:] + bytes(1024)), "no member of"),
    ],
    ids=["gone", "cut", "empty", "moved"],
)
def test_a_shard_that_changed_since_it_was_indexed_gives_no_pixel(photo_index, tmp_path, change, message):
    shutil.copytree(photo_index.path.parent, tmp_path / "copy")
    index = ShardIndex.load(tmp_path / "copy" / photo_index.path.name)
    change(Path(index.shard_urls[1]))
    spec = BatchSpec(sample_ids=np.arange(10, 20), draws=np.arange(10), seed=0, transform=Transform(size=8))
    message = rf"shard-000001\.tar.*{message}.*tempera shards index"
    with LoaderWorker(index.path, LoaderConfig()) as worker, pytest.raises(StaleIndexError, match=message):
        worker.load(spec)
    with pytest.raises(StaleIndexError, match=message) as caught:
        index.verify()
    assert "sample_id=10" in caught.value.__notes__[0]


def dimension_bomb() -> bytes:
    """A JPEG of 3 KB whose frame header claims 20,000 x 20,000 pixels: 1.2 GB."""
    return with_sides(encoded(Image.new("RGB", (640, 640))), 20_000, 20_000)


def test_bombs_and_empty_samples_cost_one_draw_each_and_no_memory(photos, tmp_path):
    scans = scan_bomb(encoded(Image.new("RGB", (640, 640)), progressive=True))
    bad = {2: dimension_bomb(), 4: b"", 5: scans}
    (tmp_path / "x.tar").write_bytes(tar_of({f"p{number}.jpg": bad.get(number, photos[number]) for number in range(8)}))
    index = build_index([tmp_path / "x.tar"], tmp_path / "i.parquet")
    spec = BatchSpec(sample_ids=np.arange(8), draws=np.arange(8), seed=0, transform=Transform(size=16))
    with LoaderWorker(index.path, LoaderConfig()) as worker:
        started = time.thread_time()
        pixels = worker.load(spec)
        assert time.thread_time() - started < 1.0
    assert [(sample.sample_id, sample.key) for sample in pixels.bad] == [(2, "p2"), (4, "p4"), (5, "p5")]
    assert "20000 x 20000" in pixels.bad[0].reason
    assert "0 bytes" in pixels.bad[1].reason
    assert "scans" in pixels.bad[2].reason
    assert not pixels.images[[2, 4, 5]].any()
    assert all(pixels.images[row].any() for row in (0, 1, 3, 6, 7))
