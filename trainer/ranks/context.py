"""This process among the ranks of a run, its device, and the few collectives that the loop needs."""

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer.config import TrainConfig, require


@dataclass(frozen=True, slots=True)
class Context:
    """Place of a process among the ranks, and collectives over the default process group.

    `Context()` is a run of one process: it needs no process group, and its collectives return their input.
    """

    rank: int = 0
    local_rank: int = 0
    """This process on its node, from 0: the number of its GPU."""
    world_size: int = 1

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of a tensor over the ranks."""
        if self.world_size == 1:
            return values
        values = values.clone()  # all_reduce works in place
        dist.all_reduce(values)  # a sum: gloo has no average
        return values / self.world_size

    def any(self, flag: bool, device: torch.device) -> bool:
        """Return whether the flag is True on any rank; waits for the device."""
        if self.world_size == 1:
            return flag
        largest = torch.tensor(float(flag), device=device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return bool(largest.item())

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace the gradients by their mean over the ranks."""
        if self.world_size == 1:
            return
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        # One flat exchange: small tensors sent one by one would each pay the network's latency.
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(flat)
        flat /= self.world_size
        for grad, piece in zip(grads, torch.split(flat, [grad.numel() for grad in grads]), strict=True):
            grad.copy_(piece.view_as(grad))

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            dist.barrier()


def current_context() -> Context:
    """Return this process's place in the group that a launcher (Ray Train, torchrun) made, or a run of one process."""
    if not (dist.is_available() and dist.is_initialized()):
        return Context()
    rank = dist.get_rank()
    # Launchers set LOCAL_RANK; without it all ranks are taken to be on one node.
    return Context(rank, int(os.environ.get("LOCAL_RANK", rank)), dist.get_world_size())


def pick_device(name: str, local_rank: int) -> torch.device:
    """Return the device of this rank; `auto` is its GPU when there is one.

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
