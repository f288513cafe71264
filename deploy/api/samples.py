"""Samples by their id: key, label, cluster, picture; and what a temperature means for this data.

Index and prototypes are read when they are first asked for. A picture goes through the loader's checked path (CRC,
header, bounded decode) in a worker of the API's own, so that looking takes nothing from the loaders that train.
"""

from __future__ import annotations

import functools
import io
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from deploy.runs.config import RunConfig
from loader import BadSampleError, LoaderConfig, ShardIndex
from scoring import Prototypes
from scoring.temperature import DistanceProfile

if TYPE_CHECKING:
    from loader import LoaderWorker

PICTURES = 512
"""Encoded pictures that are kept, a few KiB each."""
JPEG_QUALITY = 82


class Samples:
    """What is known of samples beside the selection's figures. Safe to use from several threads."""

    def __init__(self, config: RunConfig, *, file: Callable[[], str | None] = lambda: None) -> None:
        """Name the run.

        Args:
            config: the run's.
            file: the prototypes that were taken into use while it ran; None for those of the configuration.
        """
        self._config, self._file = config, file
        self._lock = threading.Lock()
        self.picture = functools.lru_cache(PICTURES)(self._picture)
        self._loaded = functools.lru_cache(1)(Prototypes.load)

    @functools.cached_property
    def index(self) -> ShardIndex:
        """The run's sample index."""
        return ShardIndex.load(self._config.data.index)

    @property
    def prototypes(self) -> Prototypes | None:
        """Distance and cluster of each sample; None for a run without."""
        path = self._file() or self._config.data.prototypes
        return None if path is None else self._loaded(path)

    @functools.cached_property
    def _worker(self) -> LoaderWorker:
        from loader import LoaderWorker

        return LoaderWorker(self._config.data.index, LoaderConfig(threads=1))

    def describe(self, sample: dict[str, Any]) -> dict[str, Any]:
        """A sample's figures with its key, label and cluster."""
        number = sample["sample_id"]
        label = int(self.index.label[number])
        names = self.index.class_names
        named = names[label] if 0 <= label < len(names) else None if label < 0 else str(label)
        prototypes = self.prototypes
        cluster = None if prototypes is None else int(prototypes.cluster[number])
        return {**sample, "key": str(self.index.keys[number]), "label": named, "cluster": cluster}

    def prototype_ids(self, k: int) -> list[int]:
        """The sample nearest to its centroid of each cluster, the largest clusters first."""
        prototypes = self.prototypes
        if prototypes is None:
            return []
        distance, cluster = prototypes.distance, prototypes.cluster
        order = np.lexsort((distance, cluster))
        nearest = order[np.unique(cluster[order], return_index=True)[1]]
        sizes = np.bincount(cluster)[cluster[nearest]]
        return [int(number) for number in nearest[np.argsort(-sizes, kind="stable")][:k]]

    def _picture(self, sample_id: int, side: int) -> bytes:
        """A sample as JPEG, cropped to a square.

        Raises:
            BadSampleError: it cannot be decoded; the message says why.
            ValueError: there is no such sample.
        """
        from loader import BatchSpec
        from loader.sweep import evaluation_transform

        ids = np.array([sample_id])
        with self._lock:
            spec = BatchSpec(sample_ids=ids, draws=ids, seed=0, transform=evaluation_transform(side))
            pixels = self._worker.load(spec)
        if pixels.bad:
            raise BadSampleError(pixels.bad[0].reason)
        buffer = io.BytesIO()
        Image.fromarray(np.moveaxis(pixels.images[0], 0, -1)).save(buffer, "JPEG", quality=JPEG_QUALITY)
        return buffer.getvalue()

    def close(self) -> None:
        """Close the shards, if any were opened."""
        worker = self.__dict__.get("_worker")
        if worker is not None:
            worker.close()


def first_law(config: RunConfig) -> tuple[float | None, float | None]:
    """Effective size and temperature that a run begins with; None for a policy that has none."""
    data, curriculum = config.data, config.curriculum
    if data.prototypes is None:
        return None, None
    direction = "hard" if "hard" in curriculum.policy else "prototypical"
    try:
        temperature = DistanceProfile(Prototypes.load(data.prototypes).distance).solve(curriculum.start, direction)
    except ValueError:
        return None, None
    return curriculum.start, temperature
