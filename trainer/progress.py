"""Where a run is: the step, and the epoch that curricula, momentum and learning rates are functions of.

Epochs are of equal length, but for patch-aware selection: after its full epochs an epoch is one pass over the kept
share of the data.
"""

from dataclasses import dataclass

from trainer.config import TrainConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Step and epoch of a run."""

    step: int
    """Optimizer step, from 0."""
    total_steps: int
    """Steps of the run."""
    epoch_steps: int
    """Steps of one pass over the data."""
    full_epochs: int = 0
    """Epochs of that length before the shorter ones begin."""
    short_steps: int = 0
    """Steps of one of the shorter epochs; 0 when there are none."""

    @property
    def fraction(self) -> float:
        """Share of the run that is done, in [0, 1), by epochs."""
        return self.position(self.step) / self.position(self.total_steps)

    @property
    def epoch(self) -> int:
        """Epoch of this step, from 0."""
        full = self.full_epochs * self.epoch_steps
        if not self.short_steps or self.step < full:
            return self.step // self.epoch_steps
        return self.full_epochs + (self.step - full) // self.short_steps

    @property
    def num_epochs(self) -> int:
        """Epochs of the run, begun ones included, 1 or more."""
        last = Progress(
            step=max(self.total_steps - 1, 0),
            total_steps=self.total_steps,
            epoch_steps=self.epoch_steps,
            full_epochs=self.full_epochs,
            short_steps=self.short_steps,
        )
        return last.epoch + 1

    def position(self, step: int) -> float:
        """Return how many epochs were done before a step, with the share of the one in progress."""
        full = self.full_epochs * self.epoch_steps
        if not self.short_steps or step <= full:
            return step / self.epoch_steps
        return self.full_epochs + (step - full) / self.short_steps


def progress_at(config: TrainConfig, step: int) -> Progress:
    """Return the progress of a run at a step."""
    epoch_steps = config.epoch_steps or max(config.total_steps // 100, 1)
    selection = config.model.pass_
    return Progress(
        step=step,
        total_steps=config.total_steps,
        epoch_steps=epoch_steps,
        full_epochs=selection.full_epochs if selection.enabled else 0,
        short_steps=max(int(selection.keep * epoch_steps), 1) if selection.enabled else 0,
    )
