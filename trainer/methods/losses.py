"""The losses of one forward pass, and what several methods do with them: reduce, add MTO, add the mask predictor's.

Shapes: B batch, N patches, M masked, P values of a patch.
"""

from typing import NamedTuple

from torch import Tensor

from trainer.masking import Mask
from trainer.mto import MtoObserver


class Losses(NamedTuple):
    """The result of one forward pass."""

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


def patch_errors(prediction_BMP: Tensor, target_BMP: Tensor) -> Tensor:
    """Return the mean squared error of each patch, [B, M], in the target's precision."""
    return (prediction_BMP.to(target_BMP.dtype) - target_BMP).square().mean(dim=-1)


def masked_losses(loss_BM: Tensor, mask: Mask) -> Losses:
    """Return the losses of patches that all count the same: every row hides equally many."""
    detached = loss_BM.detach()
    return Losses(loss_BM.mean(), detached.mean(dim=1), mask.spread(detached), mask.mask_BN, {})


def add_mto(losses: Losses, *observers: MtoObserver | None) -> Losses:
    """Add the observers' MTO losses to the total, and what they observed to the log."""
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


def add_predictor(losses: Losses, predicted_BM: Tensor, loss_BM: Tensor, num_patches: int) -> Losses:
    """Add the mask predictor's loss (PASS, Eq. 5): squared error on hidden patches, divided by all patches."""
    error = (predicted_BM.to(loss_BM.dtype) - loss_BM.detach()).square().sum() / (len(loss_BM) * num_patches)
    parts = {"method": losses.total.detach(), **losses.parts, "predictor": error.detach()}
    return losses._replace(total=losses.total + error, parts=parts)
