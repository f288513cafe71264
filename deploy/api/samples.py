"""Samples by their id: key, label, cluster, picture; and what a temperature means for this data.

Index and prototypes are read when they are first asked for. A picture goes through the loader's checked path (CRC,
header, bounded decode) in a worker of the API's own, so that looking takes nothing from the loaders that train.
"""

from __future__ import annotations

import functools
import io
import threading
from typing import Any

import numpy as np
from PIL import Image

from deploy.config import RunConfig
from deploy.prototypes.job import evaluation_transform
from loader import BadSampleError, BatchSpec, LoaderConfig, LoaderWorker, ShardIndex
from scoring import Prototypes
from scoring.temperature import DistanceProfile

PICTURES = 512
"""Encoded pictures that are kept, a few KiB each."""
JPEG_QUALITY = 82


class Samples:
    """What is known of samples beside the selection's figures. Safe to use from several threads."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        self.picture = functools.lru_cache(PICTURES)(self._picture)

    @functools.cached_property
    def index(self) -> ShardIndex:
        """The run's sample index."""
        return ShardIndex.load(self._config.data.index)

    @functools.cached_property
    def prototypes(self) -> Prototypes | None:
        """Distance and cluster of each sample; None for a run without."""
        path = self._config.data.prototypes
        return None if path is None else Prototypes.load(path)

    @functools.cached_property
    def _profile(self) -> DistanceProfile | None:
        return None if self.prototypes is None else DistanceProfile(self.prototypes.distance)

    @functools.cached_property
    def _worker(self) -> LoaderWorker:
        return LoaderWorker(LoaderConfig(index=self._config.data.index, threads=1))

    def describe(self, sample: dict[str, Any]) -> dict[str, Any]:
        """A sample's figures with its key, label and cluster."""
        number = sample["sample_id"]
        label = int(self.index.label[number])
        names = self.index.class_names
        named = names[label] if 0 <= label < len(names) else None if label < 0 else str(label)
        cluster = None if self.prototypes is None else int(self.prototypes.cluster[number])
        return {**sample, "key": str(self.index.keys[number]), "label": named, "cluster": cluster}

    def prototype_ids(self, k: int) -> list[int]:
        """The sample nearest to its centroid of each cluster, the largest clusters first."""
        if self.prototypes is None:
            return []
        distance, cluster = self.prototypes.distance, self.prototypes.cluster
        order = np.lexsort((distance, cluster))
        nearest = order[np.unique(cluster[order], return_index=True)[1]]
        sizes = np.bincount(cluster)[cluster[nearest]]
        return [int(number) for number in nearest[np.argsort(-sizes, kind="stable")][:k]]

    def solve(self, policy: str, *, effective_size: float | None, temperature: float | None) -> dict[str, float | None]:
        """The temperature of an effective size, or the other way round, for the whole data.

        Raises:
            ValueError: out of range, or a run without distances.
        """
        if self._profile is None:
            raise ValueError("this run has no distances, so no temperature. Run `tempera score` before the next.")
        direction = "hard" if "hard" in policy else "prototypical"
        if effective_size is not None:
            return {"effective_size": effective_size, "temperature": self._profile.solve(effective_size, direction)}
        assert temperature is not None, "one of the two"
        return {"effective_size": self._profile.effective_size(temperature, direction), "temperature": temperature}

    def _picture(self, sample_id: int, side: int) -> bytes:
        """A sample as JPEG, cropped to a square.

        Raises:
            BadSampleError: it cannot be decoded; the message says why.
            ValueError: there is no such sample.
        """
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
