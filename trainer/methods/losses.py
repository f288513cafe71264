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
    """[B], the mean loss of each sample's masked patches, reported as its score. Carries no gradient."""
    patch_loss_BN: Tensor
    """[B, N], the loss of each masked patch, 0 on visible ones. Carries no gradient."""
    mask_BN: Tensor
    """[B, N], 1 = masked."""
    parts: dict[str, Tensor]
    """Detached scalars for the log, by name."""


def patch_errors(prediction_BMP: Tensor, target_BMP: Tensor) -> Tensor:
    """Return mean_P((x^ - x)^2), the error of each patch, [B, M], in the target's precision.

    Under autocast the prediction is bf16: it is widened before the difference, so that the loss is not rounded to it.
    """
    return (prediction_BMP.to(target_BMP.dtype) - target_BMP).square().mean(dim=-1)


def masked_losses(loss_BM: Tensor, mask: Mask) -> Losses:
    """Return the losses of hidden patches that all count the same, from the loss of each, [B, M].

    The total is sum(loss * mask) / sum(mask), as in the official MAE.
    """
    # Every row hides equally many, so the mean over [B, M] is that quotient.
    detached = loss_BM.detach()
    return Losses(loss_BM.mean(), detached.mean(dim=1), mask.spread(detached), mask.mask_BN, {})


def add_mto(losses: Losses, *observers: MtoObserver | None) -> Losses:
    """Add the observers' MTO losses to the total (METHODS section 6), and the entropy of each layer to the log.

    A method with two decoders has two observers; the log's names of the second end in `_1`. None adds nothing.
    """
    for number, observer in enumerate(observers):
        if observer is None:
            continue
        terms = observer.losses()
        suffix = f"_{number}" if number else ""
        layers = {f"heterogeneity_{layer:02d}": value for layer, value in enumerate(observer.heterogeneity)}
        log = {name + suffix: value.detach() for name, value in (terms | layers).items()}
        # The later parts win: "method" stays the loss before the first observer's terms.
        parts = {"method": losses.total.detach(), **losses.parts, **log}
        losses = losses._replace(total=losses.total + sum(terms.values()), parts=parts)
    return losses


def add_predictor(losses: Losses, predicted_BM: Tensor, loss_BM: Tensor, num_patches: int) -> Losses:
    """Add the mask predictor's loss, 1/(B N) sum over hidden patches of (P - sg[l])^2 (PASS, Eq. 5 and 6).

    The paper divides by all patches, N = `num_patches`, not by the hidden ones.
    """
    error = (predicted_BM.to(loss_BM.dtype) - loss_BM.detach()).square().sum() / (len(loss_BM) * num_patches)
    parts = {"method": losses.total.detach(), **losses.parts, "predictor": error.detach()}
    return losses._replace(total=losses.total + error, parts=parts)
