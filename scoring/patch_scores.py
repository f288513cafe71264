"""Scores of samples from the losses of their patches, as torch code that runs on the device of the losses.

Legend: B batch, N patches; a mask is 1 where the patch was hidden from the encoder.
"""

from __future__ import annotations

import torch
from torch import Tensor


def patch_weighted_score(
    patch_loss_BN: Tensor, predicted_BN: Tensor, mask_BN: Tensor, temperature: float = 0.1
) -> Tensor:
    """Return the PASS score: masked patch losses, weighted by a softmax of the predicted losses (PASS, Eq. 7-8).

    Args:
        patch_loss_BN: reconstruction loss of each patch, mean over its values.
        predicted_BN: the loss predictor's value for each patch.
        mask_BN: 1 where masked; a row without a masked patch scores 0.
        temperature: softmax temperature; infinity weights every masked patch alike.

    Returns:
        float32 (float64 for float64 losses) [B], no gradient.

    Raises:
        ValueError: if the shapes differ or the temperature is not positive.
    """
    _check_shapes(patch_loss_BN, predicted_BN, mask_BN)
    if not temperature > 0:
        raise ValueError(f"temperature must be positive; got {temperature}. The paper uses 0.1.")
    masked_BN = mask_BN.bool()
    logits_BN = _wide(predicted_BN) / temperature
    weight_BN = torch.softmax(logits_BN.masked_fill(~masked_BN, -torch.inf), dim=1)
    # Filled after the product: a visible patch may have a loss that is not finite, and 0 * inf is NaN.
    return (weight_BN * _wide(patch_loss_BN)).masked_fill(~masked_BN, 0.0).sum(dim=1)


def masked_mean_score(patch_loss_BN: Tensor, mask_BN: Tensor) -> Tensor:
    """Return the BSS score: mean loss over the masked patches (PASS, Eq. 3).

    Args:
        patch_loss_BN: reconstruction loss of each patch, mean over its values.
        mask_BN: 1 where masked; a row without a masked patch scores 0.

    Returns:
        float32 (float64 for float64 losses) [B], no gradient.

    Raises:
        ValueError: if the shapes differ.
    """
    _check_shapes(patch_loss_BN, mask_BN)
    masked_BN = mask_BN.bool()
    total_B = _wide(patch_loss_BN).masked_fill(~masked_BN, 0.0).sum(dim=1)
    return total_B / masked_BN.sum(dim=1).clamp(min=1)


def _wide(values: Tensor) -> Tensor:
    """Return values detached and at least float32: half precision would round near-equal scores into ties."""
    return values.detach() if values.dtype == torch.float64 else values.detach().float()


def _check_shapes(*tensors: Tensor) -> None:
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if tensors[0].ndim != 2 or len(set(shapes)) != 1:
        raise ValueError(f"patch losses, predictions and mask must share one shape [B, N]; got {shapes}.")
