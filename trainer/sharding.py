"""The model over the ranks: a replica each with averaged gradients (DDP), or shards of every weight (FSDP2).

A sharded weight is a DTensor. Checkpoints hold whole tensors, so that a run can be resumed with another number of
ranks or without sharding.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from trainer.config import TrainConfig, require
from trainer.methods import build_method
from trainer.methods.base import Method
from trainer.models.vit import transformer_blocks
from trainer.ranks.context import Context


def share_over_ranks(method: Method, config: TrainConfig, context: Context, device: torch.device) -> nn.Module:
    """Return the module to call in a step: the method itself on one process, else DDP's or FSDP's.

    A method with several phases is not wrapped by DDP: the step averages each phase's gradients itself.

    Raises:
        ValueError: sharding is "fsdp" and the method has several phases.
    """
    phases = " and ".join(method.phases)
    require(
        config.sharding == "ddp" or len(method.phases) == 1,
        f"sharding='fsdp' needs a method that trains all its weights in one pass; {config.method} alternates between "
        f"{phases}, each with the other frozen, and FSDP fixes what has a gradient when it shards. Use sharding='ddp'.",
    )
    if context.world_size == 1:
        return method
    if config.sharding == "fsdp":
        mesh = init_device_mesh(device.type, (context.world_size,))
        # Blocks first: each gathers its own weights, so that only one block's are whole at a time.
        for block in transformer_blocks(method):
            fully_shard(block, mesh=mesh)
        fully_shard(method, mesh=mesh)
        return method
    if len(method.phases) > 1:
        return method
    # The buffers are tables of positions and global statistics, equal on all ranks. A gradient is a view of its bucket:
    # it is not copied once more.
    return DistributedDataParallel(
        method,
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
        find_unused_parameters=method.sometimes_unused,
    )


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with the sharded ones gathered; every rank must call it when there are any."""
    return {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in tensors.items()}


def place_like(value: Tensor, reference: Tensor) -> Tensor:
    """Return a whole tensor on the device of a reference, and sharded as it is."""
    value = value.to(reference.device)
    if isinstance(reference, DTensor) and value.ndim:  # AdamW's step counts are scalars: never sharded
        return distribute_tensor(value, reference.device_mesh, reference.placements)
    return value


@torch.no_grad()
def load_whole(method: Method, tensors: Mapping[str, Tensor]) -> None:
    """Load a whole state dict into a method, sharded or not."""
    # An unknown name is passed on as it is: `load_state_dict` then names it in its error.
    state = method.state_dict()
    method.load_state_dict(
        {name: place_like(value, state[name]) if name in state else value for name, value in tensors.items()}
    )


def unsharded(method: Method, config: TrainConfig, device: torch.device) -> Method:
    """Return the method with whole weights: itself, or a copy when it is sharded. Every rank must call it."""
    if not any(isinstance(parameter, DTensor) for parameter in method.parameters()):
        return method
    tensors = whole(method.state_dict())
    with torch.random.fork_rng():  # the initial weights are overwritten, and must cost the run no random number
        copy = build_method(config.method, config.model).to(device)
    copy.load_state_dict(tensors)
    copy.pixel_mean, copy.pixel_std = method.pixel_mean, method.pixel_std
    return copy
