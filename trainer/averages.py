"""Exponential moving averages of weights: a run's averaged weights, and the teachers of BootMAE and ConMIM."""

import math
from typing import TypeVar

import torch
from torch import nn

from trainer.progress import Progress

M = TypeVar("M", bound=nn.Module)


@torch.no_grad()
def move_average(average: nn.Module, source: nn.Module, momentum: float) -> None:
    """Set parameters of `average` to momentum * themselves + (1 - momentum) * those of `source`; buffers stay."""
    torch._foreach_lerp_(list(average.parameters()), [p.detach() for p in source.parameters()], 1 - momentum)


def freeze_copy(copy: M, source: M) -> M:
    """Give `copy` the weights of `source` and no gradients."""
    copy.load_state_dict(source.state_dict())
    copy.requires_grad_(False)
    return copy


def bootmae_momentum(progress: Progress, *, dynamic: bool) -> float:
    """Return BootMAE's momentum of an epoch: .999 to .9999 over 100 epochs, then (dynamic) to .99999 over 300."""
    epoch = progress.epoch
    if epoch < 100:
        return 0.999 + epoch / 100 * (0.9999 - 0.999)
    return 0.9999 + (min(300, epoch - 100) / 300 * (0.99999 - 0.9999) if dynamic else 0.0)


def cosine_momentum(progress: Progress, start: float) -> float:
    """Return a momentum that rises from `start` to 1 along a half cosine over the run (ConMIM)."""
    return 1 - (1 - start) * 0.5 * (1 + math.cos(math.pi * progress.fraction))
