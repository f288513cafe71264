"""`tempera shards build` from everything that it takes, over processes and again after it was interrupted."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from deploy.cli import main


def photo(number: int, side: int = 64) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (side, side + 16, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def answer(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, object]:
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    (tmp_path / "flat").mkdir()
    for number in range(12):
        (tmp_path / "flat" / f"{number:02d}.jpg").write_bytes(photo(number))
    return tmp_path / "flat"


def test_a_flat_folder_is_shrunk_and_split(capsys: pytest.CaptureFixture[str], flat: Path, tmp_path: Path) -> None:
    words = ("shards", "build", flat, "--samples-per-shard", 5, "--short-side", 32, "--quality", 80)
    built = answer(capsys, *words, "--out", tmp_path / "one", "--processes", 1)
    assert (built["samples"], built["shards"], built["classes"], built["mean_height"]) == (12, 3, 0, 32)
    again = answer(capsys, *words, "--out", tmp_path / "two", "--processes", 2)
    assert again["fingerprint"] == built["fingerprint"]
    for path in (tmp_path / "one").glob("*.tar"):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_parquet_of_the_hub_and_tars_give_the_same_images(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    for part in range(2):
        images = [{"bytes": photo(10 * part + row), "path": None} for row in range(4)]
        pq.write_table(pa.table({"img": images, "fine": [0, 1, 2, 0]}), tmp_path / "hub" / f"{part}.parquet")
    columns = ("--image-column", "img", "--label-column", "fine")
    built = answer(capsys, "shards", "build", tmp_path / "hub", "--out", tmp_path / "one", *columns)
    assert (built["samples"], built["classes"]) == (8, 3)
    again = answer(capsys, "shards", "build", tmp_path / "one", "--out", tmp_path / "two", "--samples-per-shard", 3)
    assert (again["fingerprint"], again["shards"]) == (built["fingerprint"], 3)
    indexed = answer(capsys, "shards", "index", tmp_path / "two", "--out", tmp_path / "index.parquet")
    assert indexed["fingerprint"] == built["fingerprint"]


def test_unreadable_images_are_counted_and_named(
    capsys: pytest.CaptureFixture[str], flat: Path, tmp_path: Path
) -> None:
    (flat / "05.jpg").write_text("not an image")
    assert main(["shards", "build", str(flat), "--out", str(tmp_path / "out"), "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["left_out"] == 1
    assert "left_out.jsonl" in shown.err.replace("\n", "")
    assert "05.jpg" in (tmp_path / "out" / "left_out.jsonl").read_text()


def test_a_source_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["shards", "build", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 2
    assert "does not exist" in capsys.readouterr().err
