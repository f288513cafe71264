"""The cost of a step: floating-point operations, their share of the device's peak, and a trace of the time."""

import functools
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from trainer.config import ModelConfig, TrainConfig
from trainer.methods import build_method
from trainer.randomness import StepRandomness

# Dense bf16 tensor-core peaks from NVIDIA's data sheets, in FLOP/s.
PEAK_FLOPS: dict[str, float] = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "V100": 125e12,
}
_SKIPPED_STEPS = 10  # steps before a trace: allocation and compilation are over by then


@functools.cache
def image_flops(method_name: str, model: ModelConfig) -> float:
    """Return the operations of one image's forward and backward passes, counted on the meta device."""
    # Meta tensors have shapes only, so that ViT-H is counted at once; the run's random numbers stay as they were.
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        method = build_method(method_name, model)
        images = torch.zeros(2, 3, model.image_size, model.image_size)
    with FlopCounterMode(display=False) as counter:
        for phase in method.phases:
            method(images, StepRandomness(seed=0, step=0), phase).total.backward()
    total: int = counter.get_total_flops()
    return total / len(images)


def peak_flops(device: torch.device) -> float | None:
    """Return the bf16 peak of a known GPU in FLOP/s, None for any other device."""
    if device.type != "cuda":
        return None
    # The first match counts, so that the longer of two names is listed first.
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


def utilisation(
    images_per_s: float, config: TrainConfig, device: torch.device, world_size: int
) -> dict[str, float | None]:
    """Return `tflops_per_s` of all ranks, and `mfu`, its share of their peak in [0, 1]; None where that is not known.

    MFU is defined in PaLM's appendix B (arXiv:2204.02311).
    """
    achieved, peak = image_flops(config.method, config.model) * images_per_s, peak_flops(device)
    return {"tflops_per_s": achieved / 1e12, "mfu": achieved / (peak * world_size) if peak else None}


def trace(steps: int, path: Path) -> AbstractContextManager[Any]:
    """Return a profiler that writes a Chrome trace of some steps, or a context without effect for 0."""
    if not steps:
        return nullcontext()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    return torch.profiler.profile(
        activities=activities,
        schedule=torch.profiler.schedule(wait=_SKIPPED_STEPS, warmup=1, active=steps, repeat=1),
        on_trace_ready=lambda profiler: profiler.export_chrome_trace(str(path)),
    )
