"""Figures of the evaluations: accuracy of class scores and of label maps.

Shapes: B samples, C classes.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IGNORED = 255
"""Label of pixels that are left out of every figure."""


def top_k(scores_BC: Tensor, labels_B: Tensor) -> dict[str, float]:
    """Return acc1 and acc5 in [0, 1]: the share of samples whose label is among the 1 or 5 largest scores.

    With five classes or fewer acc5 is 1.
    """
    ranked = scores_BC.topk(min(5, scores_BC.shape[1]), dim=1).indices == labels_B[:, None]
    return {"acc1": ranked[:, 0].double().mean().item(), "acc5": ranked.any(dim=1).double().mean().item()}


def count_pixels(predicted: Tensor, wanted: Tensor, num_classes: int) -> NDArray[np.int64]:
    """Return the pixels of two label maps of one shape by (true class, predicted class), int64[C, C].

    Pixels whose true class is 255 are left out.
    """
    known = wanted != IGNORED
    index = wanted[known].long() * num_classes + predicted[known].long()
    return torch.bincount(index, minlength=num_classes**2).view(num_classes, num_classes).cpu().numpy()


def pixel_figures(pairs: NDArray[np.int64]) -> dict[str, float]:
    """Return miou and macc (means over the classes that occur) and aacc, in [0, 1], of summed `count_pixels`."""
    hit, wanted, predicted = np.diag(pairs), pairs.sum(axis=1), pairs.sum(axis=0)
    union = wanted + predicted - hit
    return {
        "miou": float((hit[union > 0] / union[union > 0]).mean()),
        "aacc": float(hit.sum() / max(wanted.sum(), 1)),
        "macc": float((hit[wanted > 0] / wanted[wanted > 0]).mean()),
    }
