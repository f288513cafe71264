"""Losses that depend on the whole global batch: rows and statistics over all ranks, with their gradients.

Without a process group, or with one rank, `gather_rows` is the identity and `GlobalBatchNorm` is BatchNorm1d.
Otherwise every rank must call them, with equally many rows, and the loss made from the result is the same on every
rank; the mean over the ranks of the gradients is then the gradient of one process that saw the whole batch.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _GatherRows(torch.autograd.Function):
    """Rows of all ranks in order of rank; the backward pass sums the gradients of every rank's loss for these rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        ctx.count = len(rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # Every rank's loss depends on these rows: sum the gradients over the ranks, then take this rank's part.
        gradient = gradients[0].contiguous().clone()
        dist.all_reduce(gradient)
        return gradient.narrow(0, dist.get_rank() * ctx.count, ctx.count)


def spread_over_ranks() -> bool:
    """Return whether this process is one of several ranks."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather_rows(rows: Tensor) -> Tensor:
    """Return the rows of all ranks, [ranks * n, ...], from this rank's [n, ...], with gradients."""
    if not spread_over_ranks():
        return rows
    gathered: Tensor = _GatherRows.apply(rows)
    return gathered


class GlobalBatchNorm(nn.BatchNorm1d):
    """Batch norm of [n, width] rows whose training statistics are those of the global batch, on a CPU as on a GPU."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised rows, and move the running statistics as `BatchNorm1d` does."""
        if not (self.training and spread_over_ranks()):
            return super().forward(input)
        # Mean of squares minus square of mean: one exchange of two rows a rank, whatever the batch.
        sums = gather_rows(torch.stack([input.mean(dim=0), input.square().mean(dim=0)])[None])
        mean, square = sums.mean(dim=0)
        variance = (square - mean.square()).clamp(min=0)
        # BatchNorm1d keeps the unbiased variance for evaluation, and normalises by the biased one in training.
        with torch.no_grad():
            count = len(input) * dist.get_world_size()
            momentum = 0.1 if self.momentum is None else self.momentum
            assert self.running_mean is not None
            assert self.running_var is not None
            self.running_mean.lerp_(mean.detach(), momentum)
            self.running_var.lerp_(variance.detach() * count / max(count - 1, 1), momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        normalised: Tensor = (input - mean) * (variance + self.eps).rsqrt()
        return normalised if self.weight is None else normalised * self.weight + self.bias
