"""Real photographs and digits in shards, made once a session, and windows with a fixed random order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from sklearn.datasets import load_sample_images

from loader import FixedWindows, ImageSample, ShardIndex, StreamConfig, build_index, build_shards, digits
from loader.batches.windows import FixedWindow
from tests.samples import tar_of


class RandomWindows:
    """Windows of seeded uniform draws with spares: a stand-in for the selection service that forgets nothing."""

    def __init__(self, num_samples: int, config: StreamConfig, *, spare_ids: list[int] | None = None) -> None:
        self.num_samples, self.config, self.spare_ids = num_samples, config, spare_ids
        self.asked: list[int] = []

    def window(self, index: int) -> FixedWindow:
        self.asked.append(index)
        rng = np.random.default_rng([7, index])
        base = FixedWindows(np.arange(self.num_samples), self.config).window(index)
        spares = rng.integers(0, self.num_samples, max(2, len(base.sample_ids) // 50))
        return replace(
            base,
            version=index + 1,
            sample_ids=rng.integers(0, self.num_samples, len(base.sample_ids)),
            spare_ids=spares if self.spare_ids is None else np.array(self.spare_ids),
            spare_probability=np.full(len(spares if self.spare_ids is None else self.spare_ids), 0.25),
        )


@pytest.fixture(scope="session")
def photos() -> list[bytes]:
    """24 JPEGs of many sizes, cut from scikit-learn's two sample photographs."""
    rng = np.random.default_rng(0)
    encoded = []
    for number in range(24):
        image = Image.fromarray(load_sample_images().images[number % 2])
        width, height = rng.integers(80, 400, 2).tolist()
        resized = np.ascontiguousarray(image.resize((width, height)))
        subsampling = ("420", "422", "444")[number % 3]
        encoded.append(simplejpeg.encode_jpeg(resized, quality=90, colorsubsampling=subsampling))
    return encoded


@pytest.fixture(scope="session")
def photo_index(photos: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    root = tmp_path_factory.mktemp("photos")
    samples = [ImageSample(f"photo{number:03d}", data, number % 2) for number, data in enumerate(photos)]
    return build_index(build_shards(samples, root, max_samples=10), root / "index.parquet")


@pytest.fixture(scope="session")
def digit_index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    root = tmp_path_factory.mktemp("digits")
    return build_index(build_shards(digits(), root, max_samples=600), root / "index.parquet")


@pytest.fixture
def bad_photo_index(photos: list[bytes], tmp_path: Path) -> ShardIndex:
    """Photos where sample 3 is empty, 5 is garbage and 7 ends in the middle of its scan."""
    damage = {3: b"", 5: b"\x00garbage" * 40, 7: photos[7][: len(photos[7]) // 2]}
    members = {f"photo{number:03d}.jpg": damage.get(number, data) for number, data in enumerate(photos)}
    (tmp_path / "bad.tar").write_bytes(tar_of(members))
    return build_index([tmp_path / "bad.tar"], tmp_path / "index.parquet")


@pytest.fixture(scope="session")
def random_windows() -> type[RandomWindows]:
    return RandomWindows
