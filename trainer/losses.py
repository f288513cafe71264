"""What one forward pass of a method returns, and how the MTO losses join it.

Shapes: B batch, N patches.
"""

from typing import NamedTuple

from torch import Tensor

from trainer.mto import MtoObserver


class Losses(NamedTuple):
    """What one forward pass returns."""

    total: Tensor
    """Scalar that is minimised."""
    per_sample_B: Tensor
    """[B], the loss of each sample: its mean over masked patches. Reported as the sample's score; carries no
    gradient.
    """
    patch_loss_BN: Tensor
    """[B, N], the loss of each masked patch, 0 on visible ones. Carries no gradient."""
    mask_BN: Tensor
    """[B, N], 1 = masked."""
    parts: dict[str, Tensor]
    """Detached scalars for the log, by name."""


def add_mto(losses: Losses, *observers: MtoObserver | None) -> Losses:
    """Add the MTO losses of the observers, and what they saw to the log."""
    for number, observer in enumerate(observers):
        if observer is None:
            continue
        terms = observer.losses()
        suffix = f"_{number}" if number else ""
        log = {**{name: value.detach() for name, value in terms.items()}, **observer.report()}
        parts = {
            "method": losses.total.detach(),
            **losses.parts,
            **{name + suffix: value for name, value in log.items()},
        }
        losses = losses._replace(total=losses.total + sum(terms.values()), parts=parts)
    return losses
