"""What is done with a run's encoder while it trains: nearest-neighbour accuracy, pictures, and the run's own page.

`Evaluation` is asked every so many steps and needs labels; `Looks` is asked at the start, in the middle and at the
end of every run, and needs none.
"""

from __future__ import annotations

import logging
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploy.launch.probe import NearestNeighbourProbe
from deploy.report.run import write_run_report
from deploy.runs.config import RunConfig
from deploy.runs.rundir import RunDir
from deploy.studies.prototypes.job import evaluation_transform, sweep
from loader import ShardIndex
from trainer import Method
from trainer.record.pictures import Pictures

log = logging.getLogger(__name__)

SHOWN_IMAGES = 6
"""Rows of a picture."""


class Evaluation:
    """Called by the training loop on rank 0; decodes its images at the first call."""

    def __init__(self, config: RunConfig) -> None:
        """Name the run's images."""
        data = config.data
        test_index = None if data.test_index is None else Path(data.test_index)
        self.probe = NearestNeighbourProbe(Path(data.index), test_index, size=config.train.model.image_size)

    def __call__(self, step: int, method: Method) -> dict[str, float]:
        """Accuracies by name."""
        return self.probe(step, method)


class Looks:
    """Draws what the method does to a few images, and writes the run's page anew."""

    def __init__(self, config: RunConfig, report: Path) -> None:
        """Name the run.

        Args:
            config: the run.
            report: its folder for pictures and the page; the run directory is the one above.
        """
        self._config, self._run = config, RunDir(report.parent)

    @cached_property
    def _images(self) -> NDArray[np.uint8]:
        """A few held-out images, or training images where there are none, uint8[n,3,H,W]."""
        path = Path(self._config.data.test_index or self._config.data.index)
        count = len(ShardIndex.load(path))
        shown = np.unique(np.linspace(0, count - 1, min(SHOWN_IMAGES, count)).round().astype(np.int64))
        transform = evaluation_transform(self._config.train.model.image_size)
        return np.concatenate([images for _, images, _ in sweep(path, transform, ids=shown)])

    def __call__(self, step: int, method: Method) -> None:
        """Draw and write; training goes on when that fails, and the log says why."""
        try:
            Pictures(self._config.train, self._images, self._run.report)(step, method)
            write_run_report(self._run, self._config)
        except Exception:
            log.warning("the pictures of step %d could not be drawn", step, exc_info=True)
