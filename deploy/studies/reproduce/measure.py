"""What a trained arm is worth: nearest neighbours on the whole test split, with both kinds of features.

metrics: `nn_*` is 1-NN by cosine, `white_*` the same on whitened features, `knn20_*` weighted 20-NN, `shot5_*` a linear
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
from trainer.evaluate.knn import embed_pools, nearest_neighbour_accuracy

GALLERY, TEST = 20_000, 10_000
"""Largest numbers of images that classify and that are classified."""
SMALLEST_VARIANCE = 1e-9
"""Of a direction, relative to the largest, below which it is left small: it holds rounding errors."""
SHOTS = 5
"""LabelledImages images a class of the few-shot probe, the mean of three draws."""
DINO_NEIGHBOURS, DINO_TEMPERATURE = 20, 0.07
"""Weighted k-NN as DINO does it (METHODS section 9)."""


def whitening(gallery_ND: NDArray[np.float32]) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Features with the gallery's mean removed and its principal directions at variance 1.

    Plain cosine neighbours compare little but the few directions that vary most, which in a young encoder hold colour
    and brightness; here every direction counts alike.

    Args:
        gallery_ND: features whose mean and covariance are taken.

    Returns:
        A function of features [n, D], float32.
    """
    mean = gallery_ND.mean(axis=0, dtype=np.float64)
    variance, directions = np.linalg.eigh(np.cov(gallery_ND - mean, rowvar=False))
    scaled = directions / np.sqrt(np.maximum(variance, SMALLEST_VARIANCE * variance.max()))
    return lambda features: ((features - mean) @ scaled).astype(np.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Floor:
    """What the images give without training."""

    pixels: float
    """1-NN accuracy of the raw pixels."""
    untrained: tuple[dict[str, float], ...]
    """By seed, the metrics of the weights that the arms start from: what an arm has above them, it learned."""


class Measure:
    """Evaluates arms on the same decoded images."""

    def __init__(self, data: DataConfig, *, size: int) -> None:
        """Name the images.

        Args:
            data: training images classify, test images are classified.
            size: side of the evaluation crop.
        """
        self._data, self._size = data, size

    @cached_property
    def gallery(self) -> LabelledImages:
        """The images that classify."""
        return LabelledImages(Path(self._data.index), size=self._size, most=GALLERY)

    @cached_property
    def test(self) -> LabelledImages:
        """The images to classify."""
        return LabelledImages(Path(self._data.test_index or ""), size=self._size, most=TEST)

    def __call__(self, run: Path) -> dict[str, float]:
        """Metrics of a finished run's newest checkpoint, in [0, 1]."""
        return self._metrics(load_method(run)[1])

    def floor(self, starts: Sequence[TrainConfig]) -> Floor:
        """What pixels give, and the weights that such runs start from."""
        classified = self.gallery.flat(), self.gallery.labels, self.test.flat(), self.test.labels
        return Floor(
            pixels=nearest_neighbour_accuracy(*classified),
            untrained=tuple(self._untrained(train) for train in starts),
        )

    def _untrained(self, train: TrainConfig) -> dict[str, float]:
        torch.manual_seed(train.seed)  # as a run does before it builds its method
        return self._metrics(build_method(train.method, train.model).eval())

    def _metrics(self, method: Method) -> dict[str, float]:
        metrics = {}
        gallery = embed_pools(method, self.gallery.batches())
        test = embed_pools(method, self.test.batches())
        for pool in gallery:
            labelled = gallery[pool], self.gallery.labels, test[pool], self.test.labels
            metrics[f"nn_{pool}"] = nearest_neighbour_accuracy(*labelled)
            white = whitening(gallery[pool])
            metrics[f"white_{pool}"] = nearest_neighbour_accuracy(
                white(gallery[pool]), self.gallery.labels, white(test[pool]), self.test.labels
            )
            metrics[f"knn{DINO_NEIGHBOURS}_{pool}"] = nearest_neighbour_accuracy(
                *labelled, k=DINO_NEIGHBOURS, temperature=DINO_TEMPERATURE
            )
            known = Features(gallery[pool], self.gallery.labels)
            (row,) = few_shot(known, Features(test[pool], self.test.labels), FewShotConfig(shots=(SHOTS,)))
            metrics[f"shot{SHOTS}_{pool}"] = row["acc1"]
        return metrics
