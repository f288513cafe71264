"""Samples by their id: key, label, cluster, picture.

Index and prototypes are read at the first request that needs them. A picture takes the loader's checked path (CRC,
header, bounded decode) in a worker that the API alone uses, so that looking takes nothing from the loaders that train.
"""

from __future__ import annotations

import functools
import io
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from deploy.runs.config import RunConfig
from loader import BadSampleError, LoaderConfig, ShardIndex
from scoring import Prototypes

if TYPE_CHECKING:
    from loader import LoaderWorker

PICTURES = 512
"""Encoded pictures in memory, a few KiB each."""
JPEG_QUALITY = 82


class UnknownSample(LookupError):
    """There is no sample of that id."""


class Samples:
    """The index, the prototypes and the pictures of a run. Safe to use from several threads."""

    def __init__(self, config: RunConfig, *, file: Callable[[], str | None] = lambda: None) -> None:
        """Read nothing yet; `file` names the prototypes that a control put in use, None those of the configuration."""
        self._config, self._file = config, file
        self._lock = threading.Lock()
        self._worker: LoaderWorker | None = None
        self._jpeg = functools.lru_cache(PICTURES)(self._make_jpeg)
        # One file is kept: a control that brings other distances replaces it.
        self._loaded = functools.lru_cache(1)(Prototypes.load)

    @functools.cached_property
    def index(self) -> ShardIndex:
        return ShardIndex.load(self._config.data.index)

    @property
    def prototypes(self) -> Prototypes | None:
        """The distances and clusters in use; None for a run without."""
        path = self._file() or self._config.data.prototypes
        return None if path is None else self._loaded(path)

    def describe(self, samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return samples' figures with their keys, labels and clusters."""
        # Once for all of them: the file in use is in the log.
        prototypes, names = self.prototypes, self.index.class_names
        described = []
        for sample in samples:
            sample_id = sample["sample_id"]
            label = int(self.index.label[sample_id])
            name = names[label] if 0 <= label < len(names) else None if label < 0 else str(label)
            cluster = None if prototypes is None else int(prototypes.cluster[sample_id])
            key = str(self.index.keys[sample_id])
            described.append({**sample, "key": key, "label": name, "cluster": cluster})
        return described

    def prototype_ids(self, k: int) -> list[int]:
        """Return the sample nearest to its centroid of each cluster, the k largest clusters first."""
        prototypes = self.prototypes
        if prototypes is None:
            return []
        distance, cluster = prototypes.distance, prototypes.cluster
        # By cluster and then by distance: the first row of each cluster is its prototype.
        order = np.lexsort((distance, cluster))
        nearest = order[np.unique(cluster[order], return_index=True)[1]]
        sizes = np.bincount(cluster)[cluster[nearest]]
        return [int(number) for number in nearest[np.argsort(-sizes, kind="stable")][:k]]

    def require(self, sample_id: int) -> None:
        """Raise UnknownSample unless the index has the sample."""
        if sample_id >= len(self.index):
            raise UnknownSample(f"sample ids are 0..{len(self.index) - 1}; got {sample_id}.")

    def picture(self, sample_id: int, side: int) -> bytes:
        """Return a sample as a square JPEG of that side, in pixels.

        Raises:
            UnknownSample: there is no such sample.
            BadSampleError: it cannot be decoded; the message says why.
        """
        self.require(sample_id)
        return self._jpeg(sample_id, side)

    def _make_jpeg(self, sample_id: int, side: int) -> bytes:
        from loader import BatchSpec, LoaderWorker
        from loader.sweep import evaluation_transform

        ids = np.array([sample_id])
        with self._lock:  # one decoder, for one request at a time
            if self._worker is None:
                self._worker = LoaderWorker(self._config.data.index, LoaderConfig(threads=1))
            spec = BatchSpec(sample_ids=ids, draws=ids, seed=0, transform=evaluation_transform(side))
            pixels = self._worker.load(spec)
        if pixels.bad:
            raise BadSampleError(f"sample {sample_id} cannot be decoded: {pixels.bad[0].reason}")
        buffer = io.BytesIO()
        Image.fromarray(np.moveaxis(pixels.images[0], 0, -1)).save(buffer, "JPEG", quality=JPEG_QUALITY)
        return buffer.getvalue()

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()
