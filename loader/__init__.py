"""The data plane: WebDataset shards in, reproducible batches of pixels out.

Start with `build_index`, `LoaderWorker` and `BatchStream`; `loader.fleet.actors` and `loader.actors`, which are not
imported here, run the same on Ray.
In any PyTorch loop, over stock tars and with a weight for every image:

    index = build_index(["data/shard-000000.tar"], "data/index.parquet")
    config = StreamConfig(seed=0, global_batch=256, total_steps=1000, transform=Transform(size=224))
    windows = WeightedWindows(np.ones(len(index)), config)
    loaders = LocalLoaders([LoaderWorker("data/index.parquet", LoaderConfig(threads=2))])
    stream = BatchStream(windows, loaders, config)
    if saved is not None:
        stream.load_state_dict(saved)
    for batch in stream:
        images = batch.images.to(device, non_blocking=True).float().div(255)
        ...
        saved = stream.state_dict()  # save it with the model: the loop continues after this batch

Every rank makes its own stream with its `rank` and `world_size`, and gets its share of the same draws.
What decodes or needs torch is imported on first use: processes that only read an index or a config start in a fraction
of a second, and hold 200 MB less.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from loader.config import LoaderConfig, StreamConfig, Transform, evaluation_transform
from loader.errors import (
    BadSampleError,
    BadShardError,
    LoaderError,
    LoaderLost,
    MissingIndexError,
    StaleIndexError,
    StorageUnavailable,
    StreamStalled,
    TooManyBadSamplesError,
)
from loader.fleet.scaling import ScalePolicy
from loader.fleet.spec import FleetConfig, LoaderSpec
from loader.shards.index import ShardIndex
from loader.shards.index_builder import build_index
from loader.shards.parallel import in_processes

if TYPE_CHECKING:
    from loader.batch import BadSample, Batch, BatchSpec, Pixels
    from loader.batches.windows import FixedWindows, WeightedWindows, Window, WindowSource
    from loader.pool import LoaderPool, LocalLoaders
    from loader.shards.builder import build_dataset
    from loader.shards.listings import class_folders, list_folder, list_tars
    from loader.shards.parquet import list_parquet
    from loader.shards.sources import ImageSample, ImageSource, Shrink, digits
    from loader.shards.writer import build_shards
    from loader.stream import BatchStream
    from loader.worker import LoaderWorker

_ON_FIRST_USE = {
    "loader.batch": ("BadSample", "Batch", "BatchSpec", "Pixels"),
    "loader.batches.windows": ("FixedWindows", "WeightedWindows", "Window", "WindowSource"),
    "loader.pool": ("LoaderPool", "LocalLoaders"),
    "loader.shards.builder": ("build_dataset",),
    "loader.shards.listings": ("class_folders", "list_folder", "list_tars"),
    "loader.shards.parquet": ("list_parquet",),
    "loader.shards.sources": ("ImageSample", "ImageSource", "Shrink", "digits"),
    "loader.shards.writer": ("build_shards",),
    "loader.stream": ("BatchStream",),
    "loader.worker": ("LoaderWorker",),
}

__all__ = [
    "BadSample",
    "BadSampleError",
    "BadShardError",
    "Batch",
    "BatchSpec",
    "BatchStream",
    "FixedWindows",
    "FleetConfig",
    "ImageSample",
    "ImageSource",
    "LoaderConfig",
    "LoaderError",
    "LoaderLost",
    "LoaderPool",
    "LoaderSpec",
    "LoaderWorker",
    "LocalLoaders",
    "MissingIndexError",
    "Pixels",
    "ScalePolicy",
    "ShardIndex",
    "Shrink",
    "StaleIndexError",
    "StorageUnavailable",
    "StreamConfig",
    "StreamStalled",
    "TooManyBadSamplesError",
    "Transform",
    "WeightedWindows",
    "Window",
    "WindowSource",
    "build_dataset",
    "build_index",
    "build_shards",
    "class_folders",
    "digits",
    "evaluation_transform",
    "in_processes",
    "list_folder",
    "list_parquet",
    "list_tars",
]


def __getattr__(name: str) -> Any:
    for module, names in _ON_FIRST_USE.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
