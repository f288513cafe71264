import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from trainer_fakes import FakeStream, tiny_run

from loader import build_index, build_shards
from loader.shards.sources import ImageSample
from tests.samples import encoded
from trainer import train
from trainer.evaluate.encoders import encoder_of_run


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def coloured(tmp_path_factory):
    """(training index, test index): 60 and 30 noisy 16-pixel images of three colours, in shards."""
    paths = []
    for part, (count, seed) in enumerate(((60, 0), (30, 1))):
        directory = tmp_path_factory.mktemp(f"coloured-{part}")
        shards = build_shards(coloured_images(count, seed), directory)
        build_index(shards, directory / "index.parquet")
        paths.append(directory / "index.parquet")
    return tuple(paths)


def coloured_images(count, seed):
    generator = np.random.default_rng(seed)
    for number in range(count):
        label = number % 3
        pixels = generator.integers(0, 120, (16, 16, 3))
        pixels[:, :, label] += 100
        data = encoded(Image.fromarray(pixels.astype(np.uint8)), quality=95)
        yield ImageSample(key=f"image-{number:04d}", data=data, label=label)


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory):
    """A run of a few steps of a tiny MAE, as evaluations take it."""
    directory = tmp_path_factory.mktemp("pretrained") / "run"
    config = tiny_run()
    train(config, FakeStream(config), run_dir=directory)
    return encoder_of_run(directory)
