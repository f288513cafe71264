from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from loader import (
    BadSampleError,
    ImageSample,
    build_dataset,
    build_index,
    build_shards,
    class_folders,
    digits,
    list_parquet,
)


def hashes(paths: list[str]) -> list[str]:
    return [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths]


def test_building_twice_gives_the_same_bytes(tmp_path):
    first, second = (build_shards(digits(), tmp_path / name, max_samples=500) for name in "ab")
    assert len(first) == 4
    assert hashes(first) == hashes(second)


def test_webdataset_reads_the_shards(tmp_path, photos):
    paths = build_shards([ImageSample(f"p{i}", data, i) for i, data in enumerate(photos)], tmp_path, max_bytes=100_000)
    assert len(paths) > 1
    samples = list(webdataset.WebDataset(paths, shardshuffle=False))
    assert [sample["jpg"] for sample in samples] == photos
    assert [int(sample["cls"]) for sample in samples] == list(range(24))


def test_class_folders_give_labels_in_name_order(tmp_path, photos):
    for number, name in enumerate(["cat/1.jpg", "cat/b.c.jpg", "ant/x.JPEG", "bee/deep/y.jpg", "bee/note.txt"]):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photos[number])
    source = class_folders(tmp_path / "in")
    index = build_index(build_shards(source, tmp_path / "out"), tmp_path / "out" / "index.parquet")
    assert index.class_names == ["ant", "bee", "cat"]
    assert dict(zip(index.keys, index.label.tolist(), strict=True)) == {
        "ant/x": 0,
        "bee/deep/y": 1,
        "cat/1": 2,
        "cat/b_c": 2,
    }


def test_a_flat_folder_has_no_labels(tmp_path, photos):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(photos[0])
    index = build_index(build_shards(class_folders(tmp_path / "in"), tmp_path / "out"), tmp_path / "i.parquet")
    assert (index.class_names, index.label.tolist()) == ([], [-1])


def test_long_keys_survive(tmp_path, photos):
    key = "directory/" * 20 + "k" * 120
    index = build_index(build_shards([ImageSample(key, photos[0])], tmp_path), tmp_path / "i.parquet")
    assert index.keys == [key]


def test_the_digits_are_all_there(digit_index):
    assert len(digit_index) == 1797
    assert set(digit_index.width.tolist()) == {32}
    assert json.loads((digit_index.path.parent / "classes.json").read_text()) == list("0123456789")


def test_an_interrupted_build_leaves_nothing(tmp_path, photos):
    samples = [ImageSample("a", photos[0]), ImageSample("b", b"not an image")]
    with pytest.raises(BadSampleError, match="not a JPEG"):
        build_shards(samples, tmp_path / "out", max_samples=1)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_broken_file_in_a_folder_is_named(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"text")
    with pytest.raises(BadSampleError) as caught:
        build_shards(class_folders(tmp_path), tmp_path / "out")
    assert "broken.jpg" in caught.value.__notes__[0]


def test_wrong_sources_and_places_are_refused(tmp_path, photos):
    with pytest.raises(ValueError, match="no images under"):
        class_folders(tmp_path)
    with pytest.raises(ValueError, match="no images to write"):
        build_shards([], tmp_path / "empty")
    with pytest.raises(ValueError, match="no dots"):
        build_shards([ImageSample("a.b", photos[0])], tmp_path / "dots")
    build_shards([ImageSample("a", photos[0])], tmp_path / "full")
    with pytest.raises(ValueError, match="already holds shards"):
        build_shards([ImageSample("a", photos[0])], tmp_path / "full")


def write_parquet(path: Path, columns: dict[str, object], *, names: list[str] | None = None) -> Path:
    table = pa.table(columns)
    if names is not None:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)
    return path


def test_parquet_of_the_hub_gives_images_labels_and_class_names(tmp_path, photos):
    images = [{"bytes": data, "path": None} for data in photos[:5]]
    columns = {"image": images, "label": [1, 0, 1, 0, 1]}
    paths = [write_parquet(tmp_path / f"{i}.parquet", columns, names=["cat", "dog"]) for i in range(2)]
    index = build_dataset(list_parquet(paths), tmp_path / "out")
    assert index.class_names == ["cat", "dog"]
    assert index.label.tolist() == [1, 0, 1, 0, 1] * 2
    with index.reader() as reader:
        assert [index.read(row, reader) for row in range(10)] == photos[:5] * 2


def test_parquet_with_plain_bytes_and_no_labels(tmp_path, photos):
    listing = list_parquet([write_parquet(tmp_path / "x.parquet", {"jpg": photos[:3]})], image="jpg")
    assert [(sample.data, sample.label) for sample in listing.read()] == [(data, -1) for data in photos[:3]]


def test_parquet_without_images_is_refused(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", {"text": ["a"], "image": [3]})
    with pytest.raises(ValueError, match="must have a column 'image' of image bytes"):
        list_parquet([path])
    with pytest.raises(ValueError, match="no Parquet files"):
        list_parquet([])
    empty = write_parquet(tmp_path / "y.parquet", {"image": pa.array([None], pa.binary())})
    with pytest.raises(BadSampleError, match="no image in row 0"):
        list(list_parquet([empty]).read())
