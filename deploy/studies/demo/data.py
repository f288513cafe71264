"""The demo's images as indexed shards: bundled handwritten digits, a folder of one's own, or existing shards.

Every fifth image is held out for the nearest-neighbour test, where we write the shards ourselves; existing shards
are used as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deploy.console import progress_bar
from loader import ImageSample, ImageSource, build_index, build_shards, class_folders, digits

TEST_EVERY = 5
SAMPLES_PER_SHARD = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoData:
    """Where the demo's images are."""

    index: Path
    """Index of the training images."""
    test_index: Path | None
    """Index of the held-out images; none for shards that the person brought."""


def prepare(directory: Path, *, images: Path | None, shards: tuple[str, ...]) -> DemoData:
    """Write and index the demo's shards.

    Args:
        directory: new folder for what is written.
        images: folder of class folders, or None for the digits.
        shards: existing tars to use instead; they are indexed and not copied.

    Raises:
        ValueError: both were given, or there are no images.
        LoaderError: an image or a shard is malformed.
    """
    if images is not None and shards:
        raise ValueError("--images and --shards are two ways to name the same thing; give one of them.")
    if shards:
        return DemoData(index=_index(shards, directory / "index.parquet"), test_index=None)
    for part in ("train", "test"):
        source = class_folders(images) if images is not None else digits()
        with progress_bar(f"writing {part} shards") as advance:
            built = build_shards(
                _held_out(source, part == "test"), directory / part, max_samples=SAMPLES_PER_SHARD, progress=advance
            )
        _index(tuple(built), directory / part / "index.parquet")
    return DemoData(index=directory / "train" / "index.parquet", test_index=directory / "test" / "index.parquet")


def _index(shards: tuple[str, ...], out: Path) -> Path:
    with progress_bar(f"indexing {out.parent.name} shards") as advance:
        build_index(shards, out, progress=advance)
    return out


def _held_out(source: ImageSource, test: bool) -> ImageSource:
    def samples() -> Iterator[ImageSample]:
        for number, sample in enumerate(source.samples):
            if (number % TEST_EVERY == 0) == test:
                yield sample

    total = source.num_samples
    share = None if total is None else len(range(0, total, TEST_EVERY))
    return ImageSource(
        samples(), source.class_names, share if test or share is None or total is None else total - share
    )
