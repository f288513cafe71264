"""Epochs: where a run is, and when patch-aware selection (PASS) trains its predictor and selects (METHODS section 7).

Curricula, momenta and learning rates are functions of the epoch. All epochs have one length without PASS. With it,
epochs 0 .. full_epochs - 1 see all data; after the last of them, and after every further `period` epochs, all samples
are scored, and the next epochs see only the top share `keep`. The predictor trains in the `predictor_epochs` before
each selection. With keep .3, 200 epochs cost as much as 74: a budget of 37 %.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from trainer.config import PassConfig, TrainConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Step and epoch of a run."""

    step: int
    """Optimizer step, from 0."""
    total_steps: int
    epoch_steps: int
    """Steps of one pass over the data."""
    full_epochs: int = 0
    """Epochs of that length before the shorter ones begin."""
    short_steps: int = 0
    """Steps of one shorter epoch; 0 when there are none."""

    @property
    def fraction(self) -> float:
        """Share of the run that is done, in [0, 1), by epochs."""
        return self.position(self.step) / self.position(self.total_steps)

    @property
    def epoch(self) -> int:
        """Epoch of this step, from 0."""
        return int(self.position(self.step))

    @property
    def num_epochs(self) -> int:
        """Epochs of the run, incomplete ones included, 1 or more."""
        return max(math.ceil(self.position(self.total_steps)), 1)

    def position(self, step: int) -> float:
        """Return the epochs done before a step, with the share of the one in progress.

        Exact at the epochs' ends: a division of whole numbers that has no remainder is not rounded.
        """
        full = self.full_epochs * self.epoch_steps
        if not self.short_steps or step <= full:
            return step / self.epoch_steps
        return self.full_epochs + (step - full) / self.short_steps


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    """How a run ended; plain values, so that the driver reads it without torch."""

    step: int
    """Optimizer steps done."""
    reason: Literal["finished", "stopped"]
    """All steps are done, or the run was stopped and can be resumed."""
    checkpoint: str
    """Directory of the last one."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """The last line of metrics."""


def progress_at(config: TrainConfig, step: int) -> Progress:
    """Return the progress of a run at a step; a run without `epoch_steps` counts a hundred epochs."""
    epoch_steps = config.epoch_steps or max(config.total_steps // 100, 1)
    selection = config.model.pass_
    return Progress(
        step=step,
        total_steps=config.total_steps,
        epoch_steps=epoch_steps,
        full_epochs=selection.full_epochs if selection.enabled else 0,
        short_steps=max(int(selection.keep * epoch_steps), 1) if selection.enabled else 0,
    )


def predictor_trains(epoch: int, config: PassConfig) -> bool:
    """Return whether the predictor trains in an epoch (from 0): 17, 18, 19, 37, ... by default."""
    return epoch % config.period >= config.period - config.predictor_epochs


def selection_epochs(num_epochs: int, config: PassConfig) -> list[int]:
    """Return the epochs after which all samples are scored: 19, 39, ..., 179 of 200; none after the last epoch."""
    return list(range(config.full_epochs - 1, num_epochs - 1, config.period))


def selects_after(progress: Progress, config: PassConfig) -> bool:
    """Return whether the last step done ends an epoch that a selection follows."""
    position = progress.position(progress.step)
    ended = round(position)
    # The share of a short epoch is a division: compare with a tolerance, steps are many orders apart from it.
    return (
        config.enabled
        and math.isclose(position, ended, abs_tol=1e-9)
        and ended - 1 in selection_epochs(progress.num_epochs, config)
    )


def cost_epochs(num_epochs: int, config: PassConfig) -> float:
    """Return the cost of a run in epochs over all data, the selections themselves not counted."""
    full = min(num_epochs, config.full_epochs)
    return full + config.keep * (num_epochs - full)


def total_steps(num_samples: int, global_batch: int, num_epochs: int, config: PassConfig) -> int:
    """Return the optimizer steps of a run whose selections keep floor(keep * N) samples.

    The last partial batch of an epoch is dropped.
    """
    full = min(num_epochs, config.full_epochs)
    short = math.floor(config.keep * num_samples) // global_batch
    return full * (num_samples // global_batch) + (num_epochs - full) * short
