"""This process among the ranks of a run, its device, and the few collectives that the loop needs.

`SingleProcess` is a run without torch.distributed; `Distributed` reads the process group that a launcher (Ray Train,
torchrun) has made.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer.config import TrainConfig, require


class Context(Protocol):
    """Rank, world size and collectives."""

    @property
    def rank(self) -> int:
        """This process among all, from 0."""

    @property
    def local_rank(self) -> int:
        """This process on its node, from 0: the number of its GPU."""

    @property
    def world_size(self) -> int:
        """Processes of the run."""

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of a tensor over the ranks."""

    def any(self, flag: bool, device: torch.device) -> bool:
        """Return whether the flag is True on any rank."""

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace gradients by their mean over the ranks."""

    def barrier(self) -> None:
        """Wait for all ranks."""


@dataclass(frozen=True, slots=True)
class SingleProcess:
    """A run of one process."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1

    def mean(self, values: Tensor) -> Tensor:
        return values

    def any(self, flag: bool, device: torch.device) -> bool:
        return flag

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Do nothing: one rank's gradients are the mean."""

    def barrier(self) -> None:
        """Return at once: one rank is all ranks."""


class Distributed:
    """The ranks of the default process group."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self.local_rank = int(os.environ.get("LOCAL_RANK", self.rank))

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over the ranks, as a sum: gloo has no average."""
        values = values.clone()
        dist.all_reduce(values)
        return values / self.world_size

    def any(self, flag: bool, device: torch.device) -> bool:
        total = torch.tensor(float(flag), device=device)
        dist.all_reduce(total, op=dist.ReduceOp.MAX)
        return bool(total.item())

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace gradients by their mean over the ranks, in one flat exchange."""
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(flat)
        flat /= self.world_size
        for grad, piece in zip(grads, torch.split(flat, [grad.numel() for grad in grads]), strict=True):
            grad.copy_(piece.view_as(grad))

    def barrier(self) -> None:
        dist.barrier()


def current_context() -> Context:
    """Return the context of this process: the process group's when there is one."""
    return Distributed() if dist.is_available() and dist.is_initialized() else SingleProcess()


def pick_device(name: str, local_rank: int) -> torch.device:
    """Return the device of this rank.

    Raises:
        ValueError: a GPU is asked for and there is none.
    """
    if name == "auto":
        name = f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    require(
        device.type != "cuda" or torch.cuda.is_available(),
        f"device {name!r} needs an NVIDIA GPU and a CUDA build of torch; torch sees none here. Use device='cpu'.",
    )
    return device


def rank_batch(config: TrainConfig, world_size: int) -> int:
    """Return the images of one forward pass on one rank.

    Raises:
        ValueError: the global batch does not divide by the ranks and the accumulation steps.
    """
    parts = world_size * config.accumulation_steps
    low = config.global_batch // parts * parts
    require(
        config.global_batch % parts == 0,
        f"global_batch must be divisible by world_size * accumulation_steps ({world_size} * "
        f"{config.accumulation_steps}); "
        f"got {config.global_batch}. Try {f'{low} or ' if low else ''}{low + parts}.",
    )
    return config.global_batch // parts
