"""What of a run's configuration its selection is given: the schedule, the law of the draws, and the distances."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from deploy.runs.config import RunConfig
from scoring import Prototypes, SelectionConfig


def effective_size_schedule(config: RunConfig) -> Callable[[float], float]:
    """Return the effective size by training progress in [0, 1]; of an adaptive run its start."""
    return config.curriculum.schedule_by_progress()


def selection_config(config: RunConfig, *, num_samples: int, fingerprint: str) -> SelectionConfig:
    """Return the configuration of the run's selection."""
    train = config.train
    return SelectionConfig(
        seed=train.seed,
        global_batch=train.global_batch,
        window_steps=train.window_steps,
        num_samples=num_samples,
        fingerprint=fingerprint,
        curriculum=config.curriculum,
        rho=train.model.pass_.keep,
        reported_score="loss" if train.model.pass_.enabled else "bss",  # kind of the trainer's score reports
    )


def prototype_distances(config: RunConfig) -> NDArray[np.float32] | None:
    """The run's distances, float32[N]; None when it has none."""
    return None if config.data.prototypes is None else Prototypes.load(config.data.prototypes).distance
