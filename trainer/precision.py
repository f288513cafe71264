"""The precision of a step: where it computes in bf16, and where it must not."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from trainer.config import Precision


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the autocast context of a run's precision; `auto` is bf16 where a GPU computes it natively."""
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16" or (precision == "auto" and native))


def without_autocast(like: Tensor) -> AbstractContextManager[object]:
    """Return a context in which operations on tensors like this one keep their precision."""
    # The meta device, on which operations are counted, has no autocast.
    return nullcontext() if like.device.type == "meta" else torch.autocast(like.device.type, enabled=False)


def wide(values: Tensor) -> Tensor:
    """Return the values in float32; float64 stays."""
    return values if values.dtype == torch.float64 else values.float()
