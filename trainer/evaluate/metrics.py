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


class PixelCounts:
    """Counts pairs of (true class, predicted class) of pixels over many label maps.

    Figures are made of the sums over all images, as mmseg's are, and are not means over images.
    """

    def __init__(self, num_classes: int) -> None:
        self.pairs: NDArray[np.int64] = np.zeros((num_classes, num_classes), np.int64)

    def add(self, predicted: Tensor, wanted: Tensor) -> None:
        """Count the pixels of label maps of one shape; pixels labelled 255 are left out."""
        classes = len(self.pairs)
        known = wanted != IGNORED
        index = wanted[known].long() * classes + predicted[known].long()
        self.pairs += torch.bincount(index, minlength=classes**2).view(classes, classes).cpu().numpy()

    def figures(self) -> dict[str, float]:
        """Return miou and macc (means over the classes that occur) and aacc, in [0, 1]."""
        hit, wanted, predicted = np.diag(self.pairs), self.pairs.sum(axis=1), self.pairs.sum(axis=0)
        union = wanted + predicted - hit
        return {
            "miou": float((hit[union > 0] / union[union > 0]).mean()),
            "aacc": float(hit.sum() / max(wanted.sum(), 1)),
            "macc": float((hit[wanted > 0] / wanted[wanted > 0]).mean()),
        }
