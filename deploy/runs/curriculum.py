"""What of a run's configuration its selection is given: the schedule, the law of the draws, and the distances."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from deploy.runs.config import RunConfig
from scoring import SCHEDULES, Prototypes, SelectionConfig


def effective_size_schedule(config: RunConfig) -> Callable[[float], float]:
    """Effective dataset size by training progress in [0, 1]; of an adaptive run the start."""
    curriculum = config.curriculum
    if curriculum.adaptive:
        return SCHEDULES["fixed"](start=curriculum.start)
    return SCHEDULES[curriculum.schedule](start=curriculum.start, end=curriculum.end)


def selection_config(config: RunConfig, *, num_samples: int, fingerprint: str) -> SelectionConfig:
    """The selection's part of a run."""
    curriculum, train = config.curriculum, config.train
    reported = "loss" if train.model.pass_.enabled else "bss"  # what the trainer calls a sample's training loss
    whole = SelectionConfig(
        seed=train.seed,
        global_batch=train.global_batch,
        window_steps=train.window_steps,
        num_samples=num_samples,
        policy=curriculum.policy,
        effective_size=curriculum.start,
        spare_fraction=curriculum.spare_fraction,
        fingerprint=fingerprint,
        user_policies=curriculum.user_policies,
        adaptive=curriculum.adaptive,
        options=curriculum.options(rho=train.model.pass_.keep, reported=reported),
    )
    return whole.in_ranges(curriculum.partitions)


def prototype_distances(config: RunConfig) -> NDArray[np.float32] | None:
    """The run's distances, float32[N]; None when it has none."""
    return None if config.data.prototypes is None else Prototypes.load(config.data.prototypes).distance
