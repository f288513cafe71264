"""AdamW parameter groups and the learning rate as a function of the step.

Groups: parameters without weight decay apart from the others, and by layer where the learning rate decays with depth.
The rate of a step is computed, never carried: a resumed run needs no scheduler state.
"""

import math
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from trainer.config import TrainConfig
from trainer.methods.base import Method
from trainer.progress import progress_at


def learning_rate(config: TrainConfig, step: int) -> float:
    """Return the learning rate of a step: linear warm-up from `warmup_lr` to `peak_lr`, then the schedule.

    Cosine to `min_lr` over the steps left (official MAE, `lr_sched`), steps of a tenth at the milestones (official
    SimMIM), or constant.
    """
    # By epochs, in steps of a full epoch: in a PASS run a step of a short epoch moves the schedule further.
    progress = progress_at(config, step)
    now, end = (progress.position(at) * progress.epoch_steps for at in (step, config.total_steps))
    if now < config.warmup_steps:
        return config.warmup_lr + (config.peak_lr - config.warmup_lr) * now / config.warmup_steps
    if config.schedule == "cosine":
        done = (now - config.warmup_steps) / (end - config.warmup_steps)
        return config.min_lr + (config.peak_lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * done))
    if config.schedule == "multistep":
        return config.peak_lr * 0.1 ** sum(now >= share * end for share in config.milestones)
    return config.peak_lr


def build_optimizers(method: Method, config: TrainConfig) -> dict[str, torch.optim.AdamW]:
    """Return one AdamW for each phase of the method: a frozen network must not move by momentum or weight decay."""
    return {
        phase: torch.optim.AdamW(
            parameter_groups(method, phase, config),
            lr=config.peak_lr,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True,
        )
        for phase in method.phases
    }


def parameter_groups(method: Method, phase: str, config: TrainConfig) -> list[dict[str, Any]]:
    """Return AdamW groups with `lr_scale`, the factor on the step's rate: layer_decay ^ (depth + 1 - layer) as in MAE.

    Layers are 0 for the embeddings, k + 1 for encoder block k, and depth + 1 for the rest.
    """
    depth = len(getattr(method.encoder, "blocks", ()))
    embeddings = ("encoder.cls_token", "encoder.pos_embed", "encoder.patch_embed", "encoder.mask_token")
    groups: dict[tuple[bool, float], dict[str, Any]] = {}
    for name, parameter in method.phase_parameters(phase):
        block = re.match(r"encoder\.blocks\.(\d+)\.", name)
        layer = int(block[1]) + 1 if block else 0 if name.startswith(embeddings) else depth + 1
        # timm's rule, which MAE uses: vectors and biases do not decay; each method adds its own names.
        free = parameter.ndim <= 1 or name.endswith(".bias") or name in method.no_decay_names
        scale = config.layer_decay ** (depth + 1 - layer)
        group = groups.setdefault((free, scale), {"params": [], "names": [], "lr_scale": scale})
        group["params"].append(parameter)
        group["names"].append(name)
        if free:
            group["weight_decay"] = 0.0
    return list(groups.values())


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the step's rate in every group, times the group's `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def gradient_norm(parameters: Iterable[nn.Parameter]) -> torch.Tensor:
    """Return the Euclidean norm of all gradients as a scalar on their device: reading it would wait for the step."""
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(grads)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm  # over all shards under FSDP
