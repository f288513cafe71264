"""Shards and indices that are not what they were: said before the first wrong pixel, with the command that mends it."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploy.launch.launch import launch_in_process
from deploy.runs.config import DataConfig
from deploy.runs.rundir import RunDir
from loader import (
    BadSampleError,
    BadShardError,
    BatchStream,
    MissingIndexError,
    ShardIndex,
    StaleIndexError,
    build_index,
)
from loader.decode.cpu import CpuDecoder
from tests.faults.consuming import CONFIG, Consumed, consume, in_process, local_loaders, substituted_alone, windows
from tests.faults.small_run import small
from tests.faults.test_bytes_faults import SPREAD, TOLERANT, copied, weighted
from tests.loader.test_bad_input import dimension_bomb
from tests.samples import encoded, scan_bomb, tar_of, with_sides

Damage = Callable[[Path, Path], object]


def overwrite(shard: Path, content: bytes) -> None:
    """Put other bytes into a file that is being read: at no moment is it shorter, which readers notice by itself."""
    with shard.open("r+b") as file:
        file.write(content)
        file.truncate()


SHARDS: dict[str, Damage] = {
    "gone": lambda shard, other: shard.unlink(),
    "cut": lambda shard, other: shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2 // 512 * 512]),
    "garbage": lambda shard, other: shard.write_bytes(np.random.default_rng(0).bytes(shard.stat().st_size)),
    "of other content": lambda shard, other: overwrite(
        shard, other.read_bytes()[: shard.stat().st_size].ljust(shard.stat().st_size, b"\0")
    ),
}
"""What befalls a shard; the last two leave its length as it was."""


def places(index: ShardIndex) -> tuple[Path, Path]:
    """The first shard, and another one."""
    return Path(index.shard_urls[0]), Path(index.shard_urls[1])


@pytest.mark.parametrize("kind", SHARDS)
def test_a_run_does_not_start_on_a_shard_that_is(kind, digits: DataConfig, tmp_path, note):
    index = copied(digits, tmp_path / "copy")
    SHARDS[kind](*places(index))
    config = small(replace(digits, index=str(index.path)))
    run = RunDir(tmp_path / "run")
    with pytest.raises(StaleIndexError, match="tempera shards index"):
        launch_in_process(config, run)
    assert not run.path.exists(), "nothing was begun"
    note(f"shard {kind} at the start", seen="typed error that names `tempera shards index`, nothing begun")


@pytest.mark.parametrize("kind", ["missing", "no index"])
def test_a_run_does_not_start_on_an_index_that_is(kind, digits, tmp_path, note):
    index = copied(digits, tmp_path / "copy")
    index.path.unlink()
    if kind == "no index":
        index.path.write_bytes(b"PAR1" * 100)
    with pytest.raises(MissingIndexError, match="tempera shards index"):
        launch_in_process(small(replace(digits, index=str(index.path))), RunDir(tmp_path / "run"))
    note(f"index: {kind}", seen="typed error that names `tempera shards index`")


@pytest.mark.parametrize("kind", ["cut", "garbage"])
def test_no_index_is_made_of_a_tar_that_is(kind, digits, tmp_path, note):
    index = copied(digits, tmp_path / "copy")
    SHARDS[kind](*places(index))
    index.path.unlink()
    with pytest.raises(BadShardError, match=r"truncated|not a valid tar|no end-of-archive"):
        build_index(index.shard_urls, index.path)
    assert not index.path.exists()
    note(f"tar {kind}, to be indexed", seen="typed error, no index written")


def spoiled_in_mid_run(index: ShardIndex, kind: str) -> tuple[Consumed, Exception | None]:
    """What was consumed while the first shard was damaged after the third step, and how it ended."""
    seen = Consumed()

    def spoil(step: int) -> None:
        if step == 3:
            SHARDS[kind](*places(index))

    with local_loaders(str(index.path), 2) as pool:
        try:
            for batch in BatchStream(windows(len(index)), pool, CONFIG):
                seen.lines += consume([batch], spoil).lines
        except Exception as error:
            return seen, error
    return seen, None


@pytest.mark.parametrize("kind", ["cut", "garbage", "of other content"])
def test_a_shard_that_is_spoiled_in_mid_run_gives_no_wrong_pixel(kind, digits, tmp_path, note):
    index = copied(digits, tmp_path / "copy")
    expected = in_process(index)
    seen, error = spoiled_in_mid_run(index, kind)
    assert isinstance(error, StaleIndexError), "the fault fired"
    assert "tempera shards index" in str(error)
    assert [line["pixels"] for line in seen.lines] == [line["pixels"] for line in expected.lines[: len(seen.lines)]]
    assert len(seen.lines) > 3
    note(f"shard {kind} in mid-run", seen=f"typed error, {len(seen.lines)} right batches before it")


def test_without_checksums_a_shard_of_other_content_gives_wrong_pixels(digits, tmp_path, monkeypatch):
    index = copied(digits, tmp_path / "copy")
    expected = in_process(index)
    monkeypatch.setattr("loader.shards.reader.zlib.crc32", lambda data, start=0: 0)
    monkeypatch.setattr(ShardIndex, "read", lambda self, row, reader: reader.read(
        int(self.shard[row]), self.start(int(row)), int(self.size[row]), 0
    ))  # fmt: skip
    seen, error = spoiled_in_mid_run(index, "of other content")
    assert not isinstance(error, StaleIndexError)
    assert seen.digest != expected.digest


def test_without_verification_a_run_begins_on_a_shard_of_other_content(digits, tmp_path, monkeypatch):
    index = copied(digits, tmp_path / "copy")
    SHARDS["of other content"](*places(index))
    monkeypatch.setattr(ShardIndex, "verify", lambda self, **how: None)
    run = RunDir(tmp_path / "run")
    with pytest.raises(StaleIndexError):
        launch_in_process(small(replace(digits, index=str(index.path))), run)
    assert run.config.exists(), "somebody waits for a run that cannot be"


# -- bad when they were indexed: their checksums are right -------------------------------------------------------------


def converted(kind: str, *, mode: str = "RGB") -> Callable[[bytes], bytes]:
    """The same image in another format."""
    return lambda data: encoded(Image.open(io.BytesIO(data)).convert(mode), kind)


BAD: dict[str, Callable[[bytes], bytes]] = {
    "cut JPEG": lambda data: data[: len(data) // 2],
    "zero bytes": lambda data: bytes(len(data)),
    "dimension bomb": lambda data: with_sides(data, 20_000, 20_000),
    "scan bomb (2,000 scans)": lambda data: scan_bomb(encoded(Image.open(io.BytesIO(data)), progressive=True)),
    "text": lambda data: b"this is no image",
}
GOOD = {
    "PNG": converted("PNG"),
    "CMYK JPEG": converted("JPEG", mode="CMYK"),
    "grayscale JPEG": converted("JPEG", mode="L"),
}


def rewritten(index: ShardIndex, folder: Path, change: Callable[[bytes], bytes]) -> ShardIndex:
    """The same samples in one tar, about one in a hundred changed, and indexed so."""
    folder.mkdir()
    with index.reader() as reader:
        images = {f"{row:06d}.jpg": index.read(row, reader) for row in range(len(index))}
    changed = dict(list(images.items())[13::SPREAD])
    (folder / "x.tar").write_bytes(tar_of(images | {name: change(data) for name, data in changed.items()}))
    return build_index([folder / "x.tar"], folder / "index.parquet")


def drawn(index: ShardIndex) -> Consumed:
    return in_process(index, TOLERANT, order=weighted(index), count=2)


@pytest.mark.parametrize("kind", BAD)
def test_an_image_that_was_bad_when_it_was_indexed_costs_its_draws_alone(kind, digits, tmp_path, note):
    index = ShardIndex.load(digits.index)
    expected, seen = drawn(index), drawn(rewritten(index, tmp_path / "bad", BAD[kind]))
    substituted = substituted_alone(seen, expected, lambda sample: sample % SPREAD == 13)
    note(f"indexed as it is: {kind}, 1 % of samples", seen=f"{substituted} draws substituted, no other changed")


@pytest.mark.parametrize("kind", GOOD)
def test_an_image_of_another_kind_is_an_image(kind, digits, tmp_path, note):
    index = ShardIndex.load(digits.index)
    other = rewritten(index, tmp_path / "other", GOOD[kind])
    seen = drawn(other)
    met = sum(sample % SPREAD == 13 for line in seen.lines for sample in line["samples"])
    assert met > 0, "the fault fired"
    assert not [bad for line in seen.lines for bad in line["substituted"]]
    note(f"indexed as it is: {kind}, 1 % of samples", seen=f"{met} of them delivered, none substituted")


def test_without_decoding_image_by_image_one_that_is_cut_ends_the_run(digits, tmp_path, monkeypatch):
    def undivided(self, images, transform, out, decode=CpuDecoder.decode):
        for reason in filter(None, decode(self, images, transform, out)):
            raise BadSampleError(reason)
        return [None] * len(images)

    index = rewritten(ShardIndex.load(digits.index), tmp_path / "bad", BAD["cut JPEG"])
    monkeypatch.setattr(CpuDecoder, "decode", undivided)
    with pytest.raises(BadSampleError, match="does not decode"):
        drawn(index)


MEASURED = """
import sys
from pathlib import Path
import simplejpeg
from loader.decode.header import read_header
from loader.errors import BadSampleError
data = Path(sys.argv[1]).read_bytes()
def most_mb():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) >> 10
before = most_mb()
try:
    if sys.argv[2] == "checked":
        read_header(data, max_pixels=50_000_000)
    simplejpeg.decode_jpeg(data)
except (BadSampleError, ValueError):
    pass
print(most_mb() - before)
"""


def test_without_the_header_check_a_bomb_takes_its_memory(tmp_path):
    (tmp_path / "bomb.jpg").write_bytes(with_sides(dimension_bomb(), 10_000, 10_000))
    grown_mb = {
        way: int(subprocess.run(
            [sys.executable, "-c", MEASURED, str(tmp_path / "bomb.jpg"), way], check=True, capture_output=True
        ).stdout)
        for way in ("checked", "unchecked")
    }  # fmt: skip
    assert grown_mb["checked"] < 8
    assert grown_mb["unchecked"] > 200
