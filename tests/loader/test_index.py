from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loader import BadSampleError, ImageSample, MissingIndexError, ShardIndex, build_index, build_shards
from loader.shards.index import write_index
from loader.shards.index_checks import COLUMNS
from tests.programs import needs
from tests.samples import tar_of


def copy_dataset(index: ShardIndex, to: Path) -> Path:
    shutil.copytree(index.path.parent, to)
    return to / index.path.name


def write_members(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.write_bytes(tar_of(members))
    return path


def test_every_sample_is_found_where_the_index_says(photo_index, photos):
    with photo_index.reader() as reader:
        assert [photo_index.read(i, reader) for i in range(len(photo_index))] == photos
    assert photo_index.keys == [f"photo{i:03d}" for i in range(24)]
    assert photo_index.label.tolist() == [0, 1] * 12
    assert photo_index.shard.tolist() == [0] * 10 + [1] * 10 + [2] * 4


def test_columns_are_compact(photo_index):
    columns = ("shard", "block", "size", "crc32", "width", "height", "label")
    assert sum(getattr(photo_index, name).dtype.itemsize for name in columns) <= 24
    assert photo_index.offset.tolist() == [photo_index.start(row) for row in range(24)]


def test_one_key_is_read_without_the_others(photo_index, monkeypatch, tmp_path):
    monkeypatch.setattr("loader.shards.index._ROWS_PER_GROUP", 5)
    index = build_index(photo_index.shard_urls, tmp_path / "groups.parquet")
    assert [index.key(row) for row in range(24)] == photo_index.keys
    assert "keys" not in vars(index)
    with pytest.raises(MissingIndexError, match="lacks keys"):
        index.key(24)


@pytest.mark.parametrize("length", [2**41, 2**41 + 1])
def test_shards_that_no_index_can_address_are_refused(photo_index, tmp_path, length):
    columns = {name: getattr(photo_index, name)[:1] for name in COLUMNS}
    out = tmp_path / "long.parquet"
    if length <= 2**41:
        write_index(out, columns, ["a"], shard_urls=["a.tar"], shard_bytes=[length], class_names=[])
        assert ShardIndex.load(out).shard_bytes == [length]
        return
    with pytest.raises(ValueError, match=r"at most 2199023255552 bytes; a\.tar has 2199023255553"):
        write_index(out, columns, ["a"], shard_urls=["a.tar"], shard_bytes=[length], class_names=[])


@pytest.mark.parametrize("offset", [0, 511, 513, -512, 2**41, 2**62])
def test_places_that_no_member_can_have_are_no_index(photo_index, tmp_path, offset):
    table = pq.read_table(photo_index.path)
    places = table["offset"].to_pylist()
    places[7] = offset
    changed = table.set_column(table.schema.get_field_index("offset"), "offset", pa.array(places, pa.int64()))
    pq.write_table(changed, tmp_path / "places.parquet")
    with pytest.raises(MissingIndexError, match=f"row 7 must lie .* got offset {offset}"):
        ShardIndex.load(tmp_path / "places.parquet")


def test_loading_gives_what_was_built(photo_index):
    again = ShardIndex.load(photo_index.path)
    assert again.fingerprint == photo_index.fingerprint
    assert (again.crc32 == photo_index.crc32).all()
    assert len(again) == 24


def test_class_names_come_with_the_shards(digit_index):
    assert digit_index.class_names == list("0123456789")
    assert digit_index.label[:10].tolist() == list(range(10))


def test_the_fingerprint_survives_a_move_and_not_a_change(photo_index, photos, tmp_path):
    moved = ShardIndex.load(copy_dataset(photo_index, tmp_path / "moved"))
    moved.verify(full=True)
    assert moved.fingerprint == photo_index.fingerprint
    for number, change in enumerate((ImageSample("photo000", photos[1]), ImageSample("renamed", photos[0]))):
        root = tmp_path / str(number)
        rest = [ImageSample(f"photo{i:03d}", data, i % 2) for i, data in enumerate(photos)][1:]
        changed = build_index(build_shards([change, *rest], root), root / "index.parquet")
        assert changed.fingerprint != photo_index.fingerprint


def test_the_dali_index_is_the_one_that_wds2idx_writes(digit_index, tmp_path):
    shard = Path(digit_index.shard_urls[0])
    theirs = tmp_path / "theirs.idx"
    subprocess.run([sys.executable, "-m", "wds2idx", str(shard), str(theirs)], check=True, capture_output=True)
    assert shard.with_suffix(".idx").read_text() == theirs.read_text()


def test_the_dali_index_of_an_older_tar_is_replaced(photo_index, tmp_path):
    shard = Path(shutil.copy(photo_index.shard_urls[0], tmp_path / "x.tar"))
    shard.with_suffix(".idx").write_text("v1.2 1\njpg 512 4 photo009.jpg\n")
    index = build_index([shard], tmp_path / "i.parquet")
    assert index.keys == photo_index.keys[:10]
    assert shard.with_suffix(".idx").read_text() == Path(photo_index.shard_urls[0]).with_suffix(".idx").read_text()


def pack(path: Path, kind: str, members: list[tuple[str, bytes]]) -> None:
    """Write a tar as the tool of that name does."""
    if kind == "webdataset":
        import webdataset

        with webdataset.TarWriter(str(path)) as writer:
            for (name, data), (_, label) in zip(members[::2], members[1::2], strict=True):
                writer.write({"__key__": name.partition(".")[0], "jpg": data, "cls": label})
    elif kind.startswith("tar "):
        folder = path.parent / kind.replace(" ", "-")
        for name, data in members:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        names = [name for name, _ in members]
        subprocess.run([*kind.split(), "-cf", str(path), *names], cwd=folder, check=True)
    else:
        formats = {"pax": tarfile.PAX_FORMAT, "ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT}
        # As bsdtar: a PAX record before every member, with times to the nanosecond.
        pax_headers = {"mtime": "1700000000.123456789"} if kind == "pax bsdtar" else {}
        path.write_bytes(tar_of(members, pax_headers=pax_headers, format=formats[kind.partition(" ")[0]]))


@pytest.mark.parametrize(
    "kind",
    [
        *("webdataset", "pax", "ustar", "gnu", "pax bsdtar"),
        *(pytest.param(f"tar --format={name}", marks=needs("tar")) for name in ("gnu", "pax", "ustar")),
    ],
)
@pytest.mark.parametrize("folder", ["", "a-long-directory-name/" * 6], ids=["short", "long"])
def test_tars_of_every_tool_give_the_same_index(photos, tmp_path, kind, folder):
    members = []
    for number, photo in enumerate(photos[:4]):
        members += [(f"{folder}p{number}.jpg", photo), (f"{folder}p{number}.cls", str(number).encode())]
    pack(tmp_path / "x.tar", kind, members)
    index = build_index([tmp_path / "x.tar"], tmp_path / "i.parquet")
    assert index.keys == [f"{folder}p{number}" for number in range(4)]
    assert index.label.tolist() == [0, 1, 2, 3]
    with index.reader() as reader:
        assert [index.read(row, reader) for row in range(4)] == photos[:4]
    again = build_index([tmp_path / "x.tar"], tmp_path / "again.parquet")
    assert again.fingerprint == index.fingerprint


def test_samples_without_an_image_and_hidden_files_are_passed_over(photos, tmp_path):
    members = [("a.txt", b"text"), (".hidden.jpg", photos[0]), ("b.cls", b"7"), ("b.JPEG", photos[1])]
    members.append(("b.json", b"{}"))
    index = build_index([write_members(tmp_path / "x.tar", members)], tmp_path / "i.parquet")
    assert (index.keys, index.label.tolist()) == (["b"], [7])


def test_the_first_image_of_a_sample_counts_and_the_rest_is_announced(photos, tmp_path, caplog):
    members = [("a.left.jpg", photos[0]), ("a.right.jpg", photos[1])]
    index = build_index([write_members(tmp_path / "x.tar", members)], tmp_path / "i.parquet")
    assert index.size.tolist() == [len(photos[0])]
    assert "further images" in caplog.text


def test_an_unreadable_image_keeps_its_place_with_no_sides(bad_photo_index):
    assert (bad_photo_index.width == 0).nonzero()[0].tolist() == [3, 5]
    assert len(bad_photo_index) == 24


def test_progress_reaches_the_end(photo_index, tmp_path):
    seen: list[tuple[int, int]] = []
    build_index(photo_index.shard_urls, tmp_path / "i.parquet", progress=lambda *at: seen.append(at))
    total = sum(photo_index.shard_bytes)
    assert seen[-1] == (total, total)
    assert seen == sorted(seen)


@pytest.mark.parametrize(("urls", "message"), [([], "no shards"), (["empty.tar"], "no images in 1 shards")])
def test_nothing_to_index_is_an_error(tmp_path, urls, message):
    write_members(tmp_path / "empty.tar", [("readme.txt", b"")])
    with pytest.raises(ValueError, match=message):
        build_index([tmp_path / url for url in urls], tmp_path / "i.parquet")


def test_a_missing_index_names_the_command_that_builds_it(tmp_path):
    with pytest.raises(MissingIndexError, match="tempera shards index"):
        ShardIndex.load(tmp_path / "none.parquet")


def test_a_file_that_is_no_index_is_an_error(tmp_path, photo_index):
    (tmp_path / "garbage.parquet").write_bytes(b"garbage" * 100)
    pq.write_table(pq.read_table(photo_index.path).replace_schema_metadata({}), tmp_path / "plain.parquet")
    for name in ("garbage.parquet", "plain.parquet"):
        with pytest.raises(MissingIndexError, match="is not a sample index"):
            ShardIndex.load(tmp_path / name)


def test_an_index_of_another_format_is_an_error(tmp_path, photo_index):
    table = pq.read_table(photo_index.path)
    metadata = json.loads(table.schema.metadata[b"tempera.index"]) | {"format": 99}
    pq.write_table(
        table.replace_schema_metadata({b"tempera.index": json.dumps(metadata).encode()}), tmp_path / "new.parquet"
    )
    with pytest.raises(MissingIndexError, match="format 99"):
        ShardIndex.load(tmp_path / "new.parquet")


def test_all_of_500_bit_flips_are_detected(photo_index, tmp_path):
    index = ShardIndex.load(copy_dataset(photo_index, tmp_path / "copy"))
    shard = Path(index.shard_urls[0])
    pristine = shard.read_bytes()
    first, size = int(index.offset[0]), int(index.size[0])
    with index.reader() as reader:
        for flip in range(500):
            data = bytearray(pristine)
            data[first + flip * size // 500] ^= 1 << flip % 8
            shard.write_bytes(data)
            with pytest.raises(BadSampleError, match="CRC-32 mismatch"):
                index.read(0, reader)


def test_full_verification_finds_one_flipped_bit_and_names_the_sample(photo_index, tmp_path):
    index = ShardIndex.load(copy_dataset(photo_index, tmp_path / "copy"))
    shard = Path(index.shard_urls[2])
    data = bytearray(shard.read_bytes())
    data[index.offset[22] + 50] ^= 4
    shard.write_bytes(data)
    index.verify()
    with pytest.raises(BadSampleError) as caught:
        index.verify(full=True)
    assert "photo022" in caught.value.__notes__[0]
