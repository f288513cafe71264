"""The demo's images as indexed shards: bundled handwritten digits, the user's folder, or existing shards.

Where we write the shards, every fifth image is held out for the nearest-neighbour test; existing shards are used as
they are.
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
    """Indices of the demo's images."""

    index: Path
    test_index: Path | None
    """Held-out images; None for existing shards."""


def prepare(directory: Path, *, images: Path | None, shards: tuple[str, ...]) -> DemoData:
    """Write and index the shards of `images`, a folder of class folders, or of the digits; index the tars `shards`.

    Raises:
        ValueError: both are given, or there are no images.
        LoaderError: an image or a shard is malformed.
    """
    if images is not None and shards:
        raise ValueError("--images and --shards are two ways to name the same thing; give one of them.")
    if shards:
        index = directory / "index.parquet"
        with progress_bar("indexing shards") as advance:
            build_index(shards, index, progress=advance)
        return DemoData(index=index, test_index=None)
    for part in ("train", "test"):
        # A source is read once, image by image: each part opens its own.
        source = _split(class_folders(images) if images is not None else digits(), test=part == "test")
        with progress_bar(f"writing {part} shards") as advance:
            built = build_shards(source, directory / part, max_samples=SAMPLES_PER_SHARD, progress=advance)
        with progress_bar(f"indexing {part} shards") as advance:
            build_index(tuple(built), directory / part / "index.parquet", progress=advance)
    return DemoData(index=directory / "train" / "index.parquet", test_index=directory / "test" / "index.parquet")


def _split(source: ImageSource, *, test: bool) -> ImageSource:
    """Return the held-out images of a source, or the others."""

    def samples() -> Iterator[ImageSample]:
        for number, sample in enumerate(source.samples):
            if (number % TEST_EVERY == 0) == test:  # spread over the source, so that both parts have every class
                yield sample

    count = source.num_samples
    if count is not None:
        held_out = len(range(0, count, TEST_EVERY))
        count = held_out if test else count - held_out
    return ImageSource(samples(), source.class_names, count)
