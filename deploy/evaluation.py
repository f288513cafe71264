"""What is done with a run's encoder while it trains: nearest-neighbour accuracy, and pictures of what it predicts."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from deploy.config import RunConfig
from deploy.probe import NearestNeighbourProbe
from trainer import Method
from trainer.pictures import Pictures

SHOWN_IMAGES = 6
"""Rows of a picture."""


class Evaluation:
    """Called by the training loop on rank 0; decodes its images at the first call."""

    def __init__(self, config: RunConfig, report: Path) -> None:
        """Name the images.

        Args:
            config: the run.
            report: folder for the pictures.
        """
        data = config.data
        test_index = None if data.test_index is None else Path(data.test_index)
        self.probe = NearestNeighbourProbe(Path(data.index), test_index, size=config.train.model.image_size)
        self._config, self._report = config, report

    def __call__(self, step: int, method: Method) -> dict[str, float]:
        """Accuracies by name; pictures too at the first, the middle and the last evaluation."""
        if step in picture_steps(self._config):
            self._draw(step, method)
        return self.probe(step, method)

    def _draw(self, step: int, method: Method) -> None:
        images = self.probe.test.images
        shown = np.linspace(0, len(images) - 1, min(SHOWN_IMAGES, len(images))).round().astype(np.int64)
        Pictures(self._config.train, images[shown], self._report)(step, method)


def picture_steps(config: RunConfig) -> set[int]:
    """Steps whose evaluation draws pictures: the first, the one in the middle, and the last."""
    every, total = config.evaluate_every, config.train.total_steps
    evaluated = [*range(every, total, every), total]
    return {evaluated[0], evaluated[len(evaluated) // 2], total}
