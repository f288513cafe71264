"""The data plane: WebDataset shards in, reproducible batches of pixels out.

Start with `build_index`, `LoaderWorker` and `BatchStream`; `loader.actors` (not imported here) runs loaders on Ray.
"""

from loader.batch import BadSample, Batch, BatchSpec, Pixels
from loader.config import LoaderConfig, StreamConfig, Transform
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
from loader.index import ShardIndex
from loader.index_builder import build_index
from loader.kinds import LoaderKind
from loader.listings import class_folders, list_folder, list_parquet, list_tars, parquet_images
from loader.parallel import in_processes
from loader.pool import LoaderPool, LocalLoaders
from loader.scaling import ScalePolicy
from loader.shard_builder import Shrink, build_dataset
from loader.shard_writer import build_shards
from loader.sources import ImageSample, ImageSource, digits, shrink
from loader.stream import BatchStream
from loader.windows import FixedWindows, WeightedWindows, Window, WindowSource
from loader.worker import LoaderWorker

__all__ = [
    "BadSample",
    "BadSampleError",
    "BadShardError",
    "Batch",
    "BatchSpec",
    "BatchStream",
    "FixedWindows",
    "ImageSample",
    "ImageSource",
    "LoaderConfig",
    "LoaderError",
    "LoaderKind",
    "LoaderLost",
    "LoaderPool",
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
    "in_processes",
    "list_folder",
    "list_parquet",
    "list_tars",
    "parquet_images",
    "shrink",
]
