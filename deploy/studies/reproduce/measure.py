"""Evaluates a trained arm on the whole test split, with the CLS token and with the mean of the patch tokens.

Metrics: `nn_*` is 1-NN by cosine, `white_*` the same on whitened features, `knn20_*` weighted 20-NN, `shot5_*` a linear
probe on five images a class; `*_cls` takes the CLS token, `*_mean` the mean of the patch tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from deploy.launch.evaluation import LabelledImages
from deploy.runs.config import DataConfig
from trainer import Method, TrainConfig, build_method, load_method
from trainer.evaluate.features import Features
from trainer.evaluate.fewshot import FewShotConfig, few_shot
from trainer.evaluate.knn import Protocol, embed_pools, neighbour_figures

GALLERY, TEST = 20_000, 10_000
"""Most images that classify, and most that are classified."""
SMALLEST_VARIANCE = 1e-9
"""Relative to the largest: a direction of less variance holds rounding errors and is not scaled up further."""
SHOTS = 5
"""Labelled images a class in the few-shot probe; the accuracy is the mean of three draws."""
DINO_NEIGHBOURS, DINO_TEMPERATURE = 20, 0.07
"""DINO's weighted k-NN (METHODS section 9)."""


def whitening(gallery_ND: NDArray[np.float32]) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Return a function that centres features [n, D] and scales the gallery's principal directions to variance 1.

    Plain cosine neighbours compare little but the few directions that vary most, which in a young encoder hold colour
    and brightness; after whitening every direction has the same weight.
    """
    # In float64: the variances of an encoder's directions differ by more than float32 resolves.
    mean = gallery_ND.mean(axis=0, dtype=np.float64)
    variance, directions = np.linalg.eigh(np.cov(gallery_ND - mean, rowvar=False))
    scaled = directions / np.sqrt(np.maximum(variance, SMALLEST_VARIANCE * variance.max()))
    return lambda features: ((features - mean) @ scaled).astype(np.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Floor:
    """Accuracies on the same images without training."""

    pixels: float
    """1-NN accuracy of the raw pixels."""
    untrained: tuple[dict[str, float], ...]
    """Metrics, seed by seed, of the weights that the arms start from; an arm has learned the difference to them."""


class Measure:
    """Evaluates arms: training images classify test images, crops of side `size`, decoded at the first use."""

    def __init__(self, data: DataConfig, *, size: int) -> None:
        self._data, self._size = data, size

    @cached_property
    def gallery(self) -> LabelledImages:
        return LabelledImages(Path(self._data.index), size=self._size, most=GALLERY)

    @cached_property
    def test(self) -> LabelledImages:
        return LabelledImages(Path(self._data.test_index or ""), size=self._size, most=TEST)

    def __call__(self, run: Path) -> dict[str, float]:
        """Return the metrics of a finished run's newest checkpoint, each in [0, 1]."""
        return self._metrics(load_method(run)[1])

    def floor(self, starts: Sequence[TrainConfig]) -> Floor:
        """Measure the raw pixels, and the weights that these trainings start from."""
        untrained = []
        for train in starts:
            torch.manual_seed(train.seed)  # as a run does before it builds its method
            untrained.append(self._metrics(build_method(train.method, train.model).eval()))
        pixels = neighbour_figures(
            "nn", (self.gallery.flat(), self.gallery.labels), (self.test.flat(), self.test.labels)
        )
        return Floor(pixels=pixels["acc1"], untrained=tuple(untrained))

    def _metrics(self, method: Method) -> dict[str, float]:
        metrics = {}
        gallery = embed_pools(method, self.gallery.batches())
        test = embed_pools(method, self.test.batches())
        for pool in gallery:
            known, wanted = Features(gallery[pool], self.gallery.labels), Features(test[pool], self.test.labels)
            metrics[f"nn_{pool}"] = neighbour_figures("nn", known, wanted)["acc1"]
            white = whitening(known.values)  # fitted on the gallery alone: the test images stay unseen
            whitened = [(white(part.values), part.labels) for part in (known, wanted)]
            metrics[f"white_{pool}"] = neighbour_figures("nn", *whitened)["acc1"]
            weighted = Protocol(k=DINO_NEIGHBOURS, temperature=DINO_TEMPERATURE)
            metrics[f"knn{DINO_NEIGHBOURS}_{pool}"] = neighbour_figures(weighted, known, wanted)["acc1"]
            (row,) = few_shot(known, wanted, FewShotConfig(shots=(SHOTS,)))
            metrics[f"shot{SHOTS}_{pool}"] = row["acc1"]
        return metrics
