"""Quick measurements for a plan: the speed at which this machine decodes, trains and scores."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.autograd.graph import saved_tensors_hooks

from deploy.runs.config import RunConfig
from loader import BatchSpec, LoaderWorker
from trainer import METHODS, TrainConfig
from trainer.loop import build_state
from trainer.ranks.context import Context, pick_device
from trainer.step import TrainState, train_step
from trainer.sweep import score_batch

PROBE_S = 1.5
DECODED_AT_ONCE = 64
CPU_IMAGES, SMALL_CPU_IMAGES = 4, 32
LARGEST_ON_CPU = 150_000_000
"""Parameters; a larger model's step is not tried without a GPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerProbe:
    """The measured speed and memory of one rank on this machine."""

    images_per_s: float
    scored_per_s: float
    """Scoring speed of a selection round; 0 for a run without PASS."""
    activation_bytes: int
    """Bytes that backward keeps for one image."""
    device: str
    """cpu, or the GPU."""


def count_parameters(config: TrainConfig) -> int:
    """Return the number of trained parameters, without allocating them."""
    with torch.device("meta"):  # shapes only: ViT-H would take gigabytes
        method = METHODS[config.method](config.model)
    return sum(parameter.numel() for parameter in method.parameters() if parameter.requires_grad)


def probe_loader(run: RunConfig, *, num_samples: int) -> float:
    """Return the images per second of one loader of the run without its cache, on evenly chosen samples."""
    worker = LoaderWorker(run.data.index, replace(run.fleet.specs(run.loader)[-1].config, cache_bytes=0))
    done = 0

    def load() -> int:
        nonlocal done
        # A prime stride scatters the samples over the shards, as draws are; neighbours would share reads.
        ids = (done + np.arange(DECODED_AT_ONCE)) * 7919 % num_samples
        spec = BatchSpec(sample_ids=ids, draws=done + np.arange(DECODED_AT_ONCE), seed=0, transform=run.data.transform)
        worker.load(spec)
        done += DECODED_AT_ONCE
        return DECODED_AT_ONCE

    return _rate(load)


def probe_trainer(config: TrainConfig, *, rank_batch: int) -> TrainerProbe | None:
    """Return the speed of one rank, with small batches on a CPU; None when the model is too large to try here."""
    device = pick_device(config.device, 0)
    if device.type == "cpu" and count_parameters(config) > LARGEST_ON_CPU:
        return None
    # A step of a whole batch would take a CPU minutes.
    images = min(rank_batch, SMALL_CPU_IMAGES if config.model.num_patches <= 64 else CPU_IMAGES)
    if device.type == "cuda":  # a GPU's speed depends on its micro-batch
        images = max(1, rank_batch // config.accumulation_steps)
    state = build_state(replace(config, global_batch=images, accumulation_steps=1, total_steps=10**6), Context())
    size = config.model.image_size
    pixels = torch.randint(0, 256, (images, 3, size, size), dtype=torch.uint8)

    def step() -> int:
        train_step(state, pixels)
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # kernels run on after the call returns
        return images

    kept = _kept_bytes(state, step) // images
    scores = config.model.pass_.enabled
    scored = _rate(lambda: len(score_batch(state, pixels, np.arange(images)))) if scores else 0.0
    name = "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device)
    return TrainerProbe(images_per_s=_rate(step), scored_per_s=scored, activation_bytes=kept, device=name)


def _kept_bytes(state: TrainState, step: Callable[[], int]) -> int:
    """Return the bytes that backward keeps besides the weights."""
    kept: dict[int, int] = {}

    # By storage, since several views of one tensor are kept once.
    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {parameter.untyped_storage().data_ptr() for parameter in state.method.parameters()}
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    return sum(size for place, size in kept.items() if place not in weights)


def _rate(act: Callable[[], int]) -> float:
    """Return the sum of the act's results per second, after one call that warms up."""
    act()
    counted, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < PROBE_S:
        counted += act()
    return counted / spent
