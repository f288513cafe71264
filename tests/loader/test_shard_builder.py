from __future__ import annotations

import hashlib
import json
import multiprocessing
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loader import (
    ImageSample,
    ShardIndex,
    Shrink,
    TooManyBadSamplesError,
    build_dataset,
    build_index,
    build_shards,
    in_processes,
    list_folder,
    list_parquet,
    list_tars,
)
from loader.decode.header import read_header
from loader.shards.builder import PLAN_FILE


def hashes(out: Path) -> dict[str, str]:
    """Digest of every file that a build leaves; the index holds no times or places either."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.iterdir())}


@pytest.fixture
def folder(tmp_path: Path, photos: list[bytes]) -> Path:
    for number, data in enumerate(photos):
        path = tmp_path / "in" / ("cat", "dog")[number % 2] / f"{number:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "in"


@pytest.fixture
def parquet(tmp_path: Path, photos: list[bytes]) -> list[Path]:
    paths = []
    for number, part in enumerate((photos[:10], photos[10:])):
        rows = {"image": [{"bytes": data, "path": None} for data in part], "label": [i % 2 for i in range(len(part))]}
        paths.append(tmp_path / f"{number}.parquet")
        pq.write_table(pa.table(rows), paths[-1], row_group_size=4)
    return paths


def test_the_number_of_processes_changes_no_byte(folder, tmp_path):
    options = {"samples_per_shard": 5, "shrink": Shrink(short_side=100, quality=80)}
    one = build_dataset(list_folder(folder), tmp_path / "one", **options)
    two = build_dataset(list_folder(folder), tmp_path / "two", run=in_processes(2), **options)
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")
    assert set(hashes(tmp_path / "one")) == {
        *(f"shard-{n:06d}.{kind}" for n in range(5) for kind in ("tar", "idx")),
        "classes.json",
        "index.parquet",
    }
    assert one.fingerprint == two.fingerprint
    assert one.class_names == ["cat", "dog"]


def test_a_build_that_was_interrupted_goes_on_with_what_is_missing(folder, tmp_path):
    build_dataset(list_folder(folder), tmp_path / "whole", samples_per_shard=5)
    written = []

    def interrupted(function, tasks):
        for number, task in enumerate(tasks):
            if number == 2:
                raise KeyboardInterrupt
            written.append(Path(task.path).name)
            yield number, function(task)

    with pytest.raises(KeyboardInterrupt):
        build_dataset(list_folder(folder), tmp_path / "out", samples_per_shard=5, run=interrupted)
    (tmp_path / "out" / ".shard-000002.tar.tmp").write_bytes(b"torn")
    seen = []
    build_dataset(list_folder(folder), tmp_path / "out", samples_per_shard=5, progress=lambda *at: seen.append(at))
    assert seen == [(15, 24), (20, 24), (24, 24)]
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")


def build_half(folder: Path, out: Path) -> None:
    def stuck(function, tasks):
        for number, task in enumerate(tasks):
            while number == len(tasks) // 2:
                time.sleep(1)
            yield number, function(task)

    build_dataset(list_folder(folder), out, samples_per_shard=1, run=stuck)


def test_a_build_that_was_killed_goes_on(folder, tmp_path):
    process = multiprocessing.get_context("fork").Process(target=build_half, args=(folder, tmp_path / "out"))
    process.start()
    while len(list((tmp_path / "out").glob("shard-*.tar"))) < 3:
        assert process.is_alive()
        time.sleep(0.01)
    process.kill()
    process.join(60)
    assert (tmp_path / "out" / PLAN_FILE).exists()
    assert not (tmp_path / "out" / "index.parquet").exists()
    build_dataset(list_folder(folder), tmp_path / "out", samples_per_shard=1)
    build_dataset(list_folder(folder), tmp_path / "whole", samples_per_shard=1)
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")


def test_another_build_does_not_go_on_with_a_part(folder, tmp_path, photos):
    def stopped(function, tasks):
        yield 0, function(tasks[0])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_dataset(list_folder(folder), tmp_path / "out", samples_per_shard=5, run=stopped)
    with pytest.raises(ValueError, match="a part of another build"):
        build_dataset(list_folder(folder), tmp_path / "out", samples_per_shard=6)
    (folder / "cat" / "00.jpg").write_bytes(photos[1])
    with pytest.raises(ValueError, match="a part of another build"):
        build_dataset(list_folder(folder), tmp_path / "out", samples_per_shard=5)


def test_a_finished_build_is_not_overwritten(folder, tmp_path):
    build_dataset(list_folder(folder), tmp_path / "out")
    with pytest.raises(ValueError, match="already holds shards"):
        build_dataset(list_folder(folder), tmp_path / "out")


def test_parquet_rows_are_split_anywhere(parquet, tmp_path, photos):
    listing = list_parquet(parquet)
    assert len(listing) == 24
    for size in (1, 3, 7, 24):
        parts = [listing.part(start, start + size) for start in range(0, 24, size)]
        assert [sample.data for part in parts for sample in part.read()] == photos
    index = build_dataset(listing, tmp_path / "out", samples_per_shard=7)
    assert index.label.tolist() == [0, 1] * 12
    assert index.keys[0] == "00000-00000000"


def test_tars_are_built_anew_with_the_same_images_and_labels(photo_index, tmp_path):
    listing = list_tars(photo_index)
    index = build_dataset(listing, tmp_path / "out", samples_per_shard=7)
    assert len(index.shard_urls) == 4
    for name in ("crc32", "size", "width", "height", "label"):
        assert (getattr(index, name) == getattr(photo_index, name)).all()
    assert index.keys == photo_index.keys


def test_tars_with_the_same_keys_are_told_apart(photos, tmp_path):
    for name in "ab":
        (shard,) = build_shards([ImageSample("0", photos[0]), ImageSample("1", photos[1])], tmp_path / name)
        Path(shard).rename(tmp_path / name / f"{name}.tar")
    index = build_index(sorted(tmp_path.rglob("*.tar")), tmp_path / "index.parquet")
    again = build_dataset(list_tars(index), tmp_path / "out")
    assert again.keys == ["a/0", "a/1", "b/0", "b/1"]


def test_files_whose_keys_would_be_the_same_are_told_apart(photos, tmp_path):
    for name in ("a.jpg", "a.jpeg", "b.c.jpg", "b_c.jpg"):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(photos[0])
    index = build_dataset(list_folder(tmp_path / "in"), tmp_path / "out")
    assert len(set(index.keys)) == len(index) == 4


def test_unreadable_images_are_left_out_and_listed(folder, tmp_path):
    (folder / "cat" / "00.jpg").write_bytes(b"text")
    index = build_dataset(list_folder(folder), tmp_path / "out", samples_per_shard=10)
    assert len(index) == 23
    (line,) = (tmp_path / "out" / "left_out.jsonl").read_text().splitlines()
    listed = json.loads(line)
    assert listed["shard"] == "shard-000000.tar"
    assert listed["origin"].endswith("cat/00.jpg")
    assert "not a JPEG" in listed["reason"]


def test_too_many_unreadable_images_stop_the_build(tmp_path, photos):
    (tmp_path / "in").mkdir()
    for number in range(60):
        (tmp_path / "in" / f"{number}.jpg").write_bytes(photos[0] if number % 2 else b"text")
    with pytest.raises(TooManyBadSamplesError, match=r"21 of the first|2\d of the first"):
        build_dataset(list_folder(tmp_path / "in"), tmp_path / "out", samples_per_shard=10)


def test_shrinking_bounds_the_short_side_and_leaves_small_images_alone(folder, photos, tmp_path):
    index = build_dataset(list_folder(folder), tmp_path / "out", shrink=Shrink(short_side=120, quality=75))
    originals = {f"{('cat', 'dog')[i % 2]}/{i:02d}": data for i, data in enumerate(photos)}
    with index.reader() as reader:
        for row, key in enumerate(index.keys):
            before, after = originals[key], index.read(row, reader)
            old, new = (read_header(data, max_pixels=10**8) for data in (before, after))
            if min(old.width, old.height) <= 120:
                assert after == before
            else:
                assert min(new.width, new.height) == 120
                assert new.width / new.height == pytest.approx(old.width / old.height, rel=0.02)
    with pytest.raises(ValueError, match=r"quality in 1\.\.100"):
        Shrink(short_side=90, quality=101)


def test_a_shard_is_a_value(folder, tmp_path):
    """Tasks can be sent to other processes: what they carry does not grow with the dataset."""
    listing = list_folder(folder)
    assert len(listing.part(3, 5)) == 2
    assert [sample.key for sample in listing.part(3, 5).read()] == list(listing.keys[3:5])


def test_parallel_indexing_gives_the_same_index(photo_index, tmp_path):
    one = build_index(photo_index.shard_urls, tmp_path / "one.parquet")
    two = build_index(photo_index.shard_urls, tmp_path / "two.parquet", run=in_processes(2))
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    assert one.keys == two.keys == ShardIndex.load(photo_index.path).keys


def test_errors_of_other_processes_keep_their_type(tmp_path, photos):
    (tmp_path / "a.tar").write_bytes(b"garbage" * 1000)
    (tmp_path / "b.tar").write_bytes(b"garbage" * 1000)
    from loader import BadShardError

    with pytest.raises(BadShardError, match="is not a valid tar"):
        build_index([tmp_path / "a.tar", tmp_path / "b.tar"], tmp_path / "i.parquet", run=in_processes(2))
    with pytest.raises(ValueError, match="at least 1"):
        in_processes(0)
