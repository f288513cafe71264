"""What rank 0 does beside training: nearest-neighbour accuracy, pictures for the report, the metric of a schedule.

`NearestNeighbourProbe` is called every `evaluate_every` steps and needs labels. `ReportPictures` is called at the
start, in the middle and at the end of every run. `MetricReports` sends an adaptive schedule's metric to the selection.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deploy.runs.config import RunConfig
from deploy.runs.rundir import RunDir
from loader import ShardIndex
from loader.sweep import evaluation_transform, sweep
from scoring import Event
from trainer import Method
from trainer.evaluate.knn import embed_pools, neighbour_figures
from trainer.record.pictures import Pictures

log = logging.getLogger(__name__)

LARGEST_GALLERY, LARGEST_TEST = 5_000, 5_000
"""Most images of a probe. The accuracy's standard error is then 0.7 points at a third right; with 1,000 test images it
was 1.5 points, enough to swap two curves that RAUC compares.
"""
EMBEDDED_AT_ONCE = 256
SHOWN_IMAGES = 6
LOSS = "loss"
"""Metric of an adaptive schedule that the training loop measures itself; the others come from evaluations."""


class LabelledImages:
    """Decoded evaluation crops with their labels, at most `most`, evenly spaced over the labelled samples.

    Raises:
        ValueError: the index has no labels, or an image cannot be decoded.
    """

    def __init__(self, index_path: Path, *, size: int, most: int) -> None:
        index = ShardIndex.load(index_path)
        ids = np.flatnonzero(index.label >= 0)
        if not len(ids):
            raise ValueError(
                f"nearest-neighbour accuracy needs labels; {index_path} has none (no .cls members in its shards)."
            )
        # Evenly spaced, since shards are often written class by class: the first images would have few classes.
        ids = ids[np.linspace(0, len(ids) - 1, min(most, len(ids))).round().astype(np.int64)]
        images: list[NDArray[np.uint8]] = []
        for _, batch, bad in sweep(index_path, evaluation_transform(size), ids=ids):
            if bad:  # a black image with a label would count as an error of the encoder
                raise ValueError(f"cannot evaluate on {index_path}: {bad[0]}")
            images.append(batch)
        self.images: NDArray[np.uint8] = np.concatenate(images)
        """uint8[n,3,size,size]."""
        self.labels: NDArray[np.int64] = index.label[ids].astype(np.int64)
        """int64[n]."""

    def batches(self) -> Iterator[torch.Tensor]:
        """Yield the images in order as uint8 tensors [m,3,size,size], m at most 256."""
        for start in range(0, len(self.images), EMBEDDED_AT_ONCE):
            yield torch.from_numpy(np.ascontiguousarray(self.images[start : start + EMBEDDED_AT_ONCE]))

    def flat(self) -> NDArray[np.float32]:
        """Return the pixels as vectors in [0, 1], float32[n, 3 * size * size]."""
        return self.images.reshape(len(self.images), -1).astype(np.float32) / np.float32(255)


class NearestNeighbourProbe:
    """Cosine 1-NN accuracy of an encoder on a run's own images, called by the training loop.

    The images are decoded at the first call, so that ranks that never evaluate decode nothing, and stay in memory as
    bytes. Without a held-out index the training images classify each other, each one leaving itself out.
    """

    def __init__(self, index: Path, test_index: Path | None, *, size: int) -> None:
        self._index, self._test_index, self._size = index, test_index, size

    @cached_property
    def gallery(self) -> LabelledImages:
        return LabelledImages(self._index, size=self._size, most=LARGEST_GALLERY)

    @cached_property
    def test(self) -> LabelledImages:
        if self._test_index is None:
            return self.gallery  # the same object, by which the methods below know to leave each image out
        return LabelledImages(self._test_index, size=self._size, most=LARGEST_TEST)

    def __call__(self, step: int, model: torch.nn.Module) -> dict[str, float]:
        """Return the accuracies "nn_cls" (CLS token) and "nn_mean" (mean of the patch tokens), in [0, 1]."""
        gallery = embed_pools(model, self.gallery.batches())
        test = gallery if self.test is self.gallery else embed_pools(model, self.test.batches())
        return {f"nn_{pool}": self._accuracy(gallery[pool], test[pool]) for pool in gallery}

    def pixels(self) -> float:
        """Return the accuracy of the raw pixels, which an encoder should exceed."""
        return self._accuracy(self.gallery.flat(), self.test.flat())

    def _accuracy(self, gallery: NDArray[np.float32], test: NDArray[np.float32]) -> float:
        alone = self.test is self.gallery
        known, wanted = (gallery, self.gallery.labels), (test, self.test.labels)
        return neighbour_figures("nn", known, wanted, exclude_self=alone)["acc1"]


def build_probe(config: RunConfig) -> NearestNeighbourProbe:
    """Return the probe of a run's own images."""
    test_index = None if config.data.test_index is None else Path(config.data.test_index)
    return NearestNeighbourProbe(Path(config.data.index), test_index, size=config.train.model.image_size)


class ReportPictures:
    """Draws what the method does to a few images, and writes the run's page anew."""

    def __init__(self, config: RunConfig, run: RunDir) -> None:
        self._config, self._run = config, run
        self._images: NDArray[np.uint8] | None = None

    def __call__(self, step: int, method: Method) -> None:
        """Draw a few held-out images, or training images where there are none, and write the page.

        Logs a failure instead of raising it: training does not depend on pictures.
        """
        from deploy.report.run import (
            write_run_report,
        )  # imports matplotlib, which a rank without pictures does not need

        config = self._config
        try:
            if self._images is None:  # decoded once, so that the pictures of all steps show the same images
                path = Path(config.data.test_index or config.data.index)
                count = len(ShardIndex.load(path))
                ids = np.unique(np.linspace(0, count - 1, min(SHOWN_IMAGES, count)).round().astype(np.int64))
                decoded = sweep(path, evaluation_transform(config.train.model.image_size), ids=ids)
                self._images = np.concatenate([images for _, images, _ in decoded])
            Pictures(config.train, self._images, self._run.report)(step, method)
            write_run_report(self._run, config)
        except Exception:
            log.warning("the pictures of step %d could not be drawn", step, exc_info=True)


class MetricReports:
    """Sends the metric that an adaptive schedule follows to the selection, from a thread: training does not wait.

    The metric is "loss", averaged over each window, or a name among the evaluation's values. Each value is logged
    under an identity of its name and step, so a resumed run that measures it again adds nothing, and every effective
    size follows from the log. Used on rank 0.
    """

    def __init__(self, record: Callable[[Event], None], *, metric: str, window_steps: int) -> None:
        self._record, self._metric, self._window_steps = record, metric, window_steps
        # One thread, so that the values arrive in the order in which they were measured.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="metric")
        self._losses: list[float] = []
        self._window: int | None = None

    def on_step(self, step: int, values: dict[str, Any]) -> None:
        """Collect the loss of a logged step; send the mean at the window's last logged step or the next one after."""
        if self._window is None:  # a resumed run begins in any window
            self._window = (step - 1) // self._window_steps
        self._losses.append(float(values[LOSS]))
        if step // self._window_steps > self._window:
            mean, self._losses = sum(self._losses) / len(self._losses), []
            self._window = step // self._window_steps
            self._report(step, mean)

    def after(self, evaluate: Callable[[int, Any], dict[str, float]]) -> Callable[[int, Any], dict[str, float]]:
        """Return the evaluation that also sends its value of the metric."""

        def evaluated(step: int, method: Any) -> dict[str, float]:
            values = evaluate(step, method)
            self._report(step, values[self._metric])
            return values

        return evaluated

    def _report(self, step: int, value: float) -> None:
        request = f"metric {self._metric} {step}"
        event = Event(kind="metric", author="trainer", message=self._metric, value=value, request=request)

        def send() -> None:
            try:
                self._record(event)
            except Exception:  # any failure of a remote service: the effective size stays as it is
                log.warning("%s could not be reported to the selection", event.message, exc_info=True)

        self._thread.submit(send)
