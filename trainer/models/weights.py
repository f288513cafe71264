"""Initial weights of the networks, and moving averages of weights (the teachers of BootMAE and ConMIM)."""

import math
from typing import TypeVar

import torch
from timm.layers.patch_embed import PatchEmbed
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)

INIT_STD = 0.02
INSIDE = math.erf(1 / math.sqrt(2))  # probability within one standard deviation


def init_xavier(module: nn.Module) -> None:
    """Initialise one module as MAE does: Xavier-uniform matrices (the patch convolution is one), zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, PatchEmbed):
        nn.init.xavier_uniform_(module.proj.weight.view(module.proj.weight.shape[0], -1))


@torch.no_grad()
def narrow_normal(weight: Tensor) -> None:
    """Fill with a normal of standard deviation .02 cut at one standard deviation (official SimMIM and ConMIM).

    timm's own trunc_normal_ cuts at 2, that is at a hundred deviations: not the official weights.
    """
    # The inverse distribution function of uniforms: rejection sampling, as in torch's trunc_normal_, takes forty times
    # as long at this cut.
    weight.uniform_(-INSIDE, INSIDE).erfinv_().mul_(INIT_STD * math.sqrt(2)).clamp_(-INIT_STD, INIT_STD)


@torch.no_grad()
def move_average(average: nn.Module, source: nn.Module, momentum: float) -> None:
    """Set parameters of `average` to momentum * themselves + (1 - momentum) * those of `source`; buffers stay.

    So ConMIM's teacher keeps the batch statistics of its own view (official code).
    """
    # One kernel for all tensors: a ViT-B has 150 of them.
    torch._foreach_lerp_(list(average.parameters()), [p.detach() for p in source.parameters()], 1 - momentum)


def freeze_copy(copy: M, source: M) -> M:
    """Give `copy`, a module built like `source`, its weights and no gradients, and return it."""
    copy.load_state_dict(source.state_dict())
    copy.requires_grad_(False)
    return copy
