"""Other loaders doing the same work, for comparison. Each starts from encoded JPEGs, in its own scratch folder if any.

A peer is a function (encoded images, workers) -> context manager of an endless iterator over batch sizes; adding one
takes a function and a line in PEERS. Those that are not installed raise ImportError.
"""

# Peers are optional and typed loosely: most machines lack FFCV, and the stubs of DALI lag behind it.
# mypy: disable-error-code="import-not-found,no-untyped-call,assignment"

from __future__ import annotations

import io
import itertools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

Peer = Callable[[list[bytes], int], AbstractContextManager[Iterator[int]]]
_BATCH: Final = 64
_EPOCH: Final = 100_000
"""Images in an epoch: many, since torch's and FFCV's loaders start their workers anew for each."""


class _Photos(Dataset[torch.Tensor]):
    """Encoded images, decoded and transformed by one function at each access."""

    def __init__(self, encoded: list[bytes], load: Callable[[bytes], torch.Tensor]) -> None:
        self._encoded, self._load = encoded, load

    def __len__(self) -> int:
        return _EPOCH

    def __getitem__(self, item: int) -> torch.Tensor:
        return self._load(self._encoded[item % len(self._encoded)])


# Classes, not closures: worker processes that are not forked get their dataset by pickle.
class _PilRecipe:
    """The MAE recipe: Pillow, RandomResizedCrop, flip, to a float tensor."""

    def __init__(self) -> None:
        from torchvision import transforms  # noqa: PLC0415 - slow to import, and only peers need it

        self._transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(224, (0.2, 1.0), interpolation=transforms.InterpolationMode.BICUBIC),
                transforms.RandomHorizontalFlip(),
                transforms.PILToTensor(),
            ]
        )

    def __call__(self, data: bytes) -> torch.Tensor:
        with Image.open(io.BytesIO(data)) as image:
            tensor: torch.Tensor = self._transform(image.convert("RGB"))
        return tensor


class _TensorRecipe:
    """torchvision v2 on uint8 tensors, decoded by libjpeg-turbo as in this loader."""

    def __init__(self) -> None:
        from torchvision.transforms import v2  # noqa: PLC0415

        crop = v2.RandomResizedCrop(224, (0.2, 1.0), interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
        self._transform = v2.Compose([crop, v2.RandomHorizontalFlip()])

    def __call__(self, data: bytes) -> torch.Tensor:
        pixels = torch.from_numpy(simplejpeg.decode_jpeg(data)).permute(2, 0, 1)
        tensor: torch.Tensor = self._transform(pixels)
        return tensor


@contextmanager
def _data_loader(encoded: list[bytes], workers: int, load: Callable[[bytes], torch.Tensor]) -> Iterator[Iterator[int]]:
    batches = DataLoader(_Photos(encoded, load), _BATCH, shuffle=True, num_workers=workers)
    yield (len(batch) for batch in itertools.chain.from_iterable(itertools.repeat(batches)))


@contextmanager
def _webdataset(encoded: list[bytes], workers: int) -> Iterator[Iterator[int]]:
    import webdataset  # noqa: PLC0415

    with tempfile.TemporaryDirectory(prefix="tempera-bench-") as scratch:
        urls = []
        for number in range(workers):
            urls.append(f"{scratch}/{number}.tar")
            with Path(urls[-1]).open("wb") as file, webdataset.TarWriter(file) as tar:
                for row in range(number, len(encoded), workers):
                    tar.write({"__key__": f"{row:06d}", "jpg": encoded[row]})
        dataset = webdataset.WebDataset(urls, shardshuffle=False, resampled=True)
        decoded = dataset.to_tuple("jpg").map_tuple(_PilRecipe())
        batches = DataLoader(decoded.batched(_BATCH), None, num_workers=workers)
        yield (len(batch[0]) for batch in batches)


@contextmanager
def _dali(encoded: list[bytes], workers: int) -> Iterator[Iterator[int]]:
    from nvidia.dali import fn, types  # noqa: PLC0415
    from nvidia.dali.pipeline import Pipeline  # noqa: PLC0415

    pipeline: Any = Pipeline(batch_size=_BATCH, num_threads=workers, device_id=None, seed=0)
    arrays = itertools.cycle([np.frombuffer(data, np.uint8) for data in encoded])
    operators: Any = types
    with pipeline:
        data = fn.external_source(lambda: [next(arrays) for _ in range(_BATCH)])
        images = fn.decoders.image_random_crop(data, random_area=[0.2, 1.0], output_type=operators.RGB)
        images = fn.resize(images, size=[224, 224], interp_type=operators.INTERP_CUBIC, antialias=True)
        pipeline.set_outputs(fn.flip(images, horizontal=fn.random.coin_flip()))
    pipeline.build()
    yield (len(pipeline.run()[0]) for _ in itertools.count())


@contextmanager
def _ffcv(encoded: list[bytes], workers: int) -> Iterator[Iterator[int]]:
    from ffcv.fields.decoders import RandomResizedCropRGBImageDecoder  # noqa: PLC0415
    from ffcv.fields.rgb_image import RGBImageField  # noqa: PLC0415
    from ffcv.loader import Loader  # noqa: PLC0415
    from ffcv.transforms import RandomHorizontalFlip  # noqa: PLC0415
    from ffcv.writer import DatasetWriter  # noqa: PLC0415

    with tempfile.TemporaryDirectory(prefix="tempera-bench-") as scratch:
        path = f"{scratch}/images.beton"
        fields = {"image": RGBImageField(write_mode="jpg", max_resolution=500, jpeg_quality=90)}
        images = [(simplejpeg.decode_jpeg(data),) for data in encoded]
        DatasetWriter(path, fields, num_workers=workers).from_indexed_dataset(images)
        crop = RandomResizedCropRGBImageDecoder((224, 224), scale=(0.2, 1.0))
        # Each epoch starts threads and compiles: epochs of a few batches would measure only that.
        repeated = np.tile(np.arange(len(encoded)), -(-_EPOCH // len(encoded)))
        batches = Loader(
            path,
            batch_size=_BATCH,
            num_workers=workers,
            indices=repeated,
            pipelines={"image": [crop, RandomHorizontalFlip()]},
        )
        yield (len(batch[0]) for batch in itertools.chain.from_iterable(itertools.repeat(batches)))


PEERS: Final[dict[str, Peer]] = {
    "torch_pil": lambda encoded, workers: _data_loader(encoded, workers, _PilRecipe()),
    "torchvision_v2": lambda encoded, workers: _data_loader(encoded, workers, _TensorRecipe()),
    "webdataset": _webdataset,
    "dali_cpu": _dali,
    "ffcv": _ffcv,
}
