"""When patch-aware selection trains its predictor and selects, and what that costs (METHODS section 7).

Epochs 0 .. full_epochs - 1 see all data. After the last of them, and after every further `period` epochs, all samples
are scored and the next epochs see the top share `keep` only. The predictor trains in the `predictor_epochs` before
each selection. With keep .3, 200 epochs cost 74: a budget of 37 %.
"""

import math

from trainer.config import PassConfig
from trainer.progress import Progress


def predictor_trains(epoch: int, config: PassConfig) -> bool:
    """Tell whether the predictor trains in an epoch: 17, 18, 19, 37, ... by default."""
    return epoch % config.period >= config.period - config.predictor_epochs


def selection_epochs(num_epochs: int, config: PassConfig) -> list[int]:
    """Return the epochs after which all samples are scored: 19, 39, ..., 179 of 200; none after the last epoch."""
    return list(range(config.full_epochs - 1, num_epochs - 1, config.period))


def selects_after(progress: Progress, config: PassConfig) -> bool:
    """Tell whether the last step that was done ends an epoch that a selection follows."""
    position = progress.position(progress.step)
    ended = round(position)
    return (
        config.enabled
        and math.isclose(position, ended, abs_tol=1e-9)
        and ended - 1 in selection_epochs(progress.num_epochs, config)
    )


def subset_size(num_samples: int, config: PassConfig) -> int:
    """Return the samples that a selection keeps: floor(keep * N)."""
    return math.floor(config.keep * num_samples)


def cost_epochs(num_epochs: int, config: PassConfig) -> float:
    """Return the cost of a run in epochs over all data, the selections themselves not counted."""
    full = min(num_epochs, config.full_epochs)
    return full + config.keep * (num_epochs - full)


def epochs_for_budget(budget_epochs: float, config: PassConfig) -> int:
    """Return the epochs that a budget in epochs over all data pays for: full + (budget - full) / keep."""
    if budget_epochs <= config.full_epochs:
        return math.floor(budget_epochs)
    return math.floor(config.full_epochs + (budget_epochs - config.full_epochs) / config.keep + 1e-9)


def keep_for_budget(num_epochs: int, budget_epochs: float, config: PassConfig) -> float:
    """Return the share to keep so that `num_epochs` epochs cost a budget.

    Raises:
        ValueError: the full epochs alone cost more, or the budget is more than all data.
    """
    keep = (budget_epochs - config.full_epochs) / (num_epochs - config.full_epochs)
    if not 0 < keep <= 1:
        raise ValueError(
            f"a budget must be above full_epochs ({config.full_epochs}) and at most the epochs ({num_epochs}); got "
            f"{budget_epochs}."
        )
    return keep


def total_steps(num_samples: int, global_batch: int, num_epochs: int, config: PassConfig) -> int:
    """Return the optimizer steps of a run; the last partial batch of an epoch is dropped."""
    full = min(num_epochs, config.full_epochs)
    short = subset_size(num_samples, config) // global_batch
    return full * (num_samples // global_batch) + (num_epochs - full) * short
