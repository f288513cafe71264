"""One optimizer step: uint8 images in, updated weights out.

For each phase of the method: forward and backward on every micro-batch, gradients averaged over the ranks, one AdamW
update. No step waits for the device: a non-finite gradient stops the update on the device itself, and the caller finds
it when it next reads numbers.
"""

import functools
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainer.config import TrainConfig
from trainer.methods.base import Method
from trainer.methods.losses import Losses
from trainer.optim import gradient_norm, learning_rate, set_learning_rate
from trainer.precision import autocast
from trainer.progress import Progress, progress_at
from trainer.randomness import StepRandomness
from trainer.ranks.context import Context


@dataclass(kw_only=True, slots=True)
class TrainState:
    """The values that a step changes, and those it needs."""

    config: TrainConfig
    context: Context
    device: torch.device
    method: Method
    """The module itself."""
    model: nn.Module
    """The module as it is called: the method, or its wrapper over the ranks."""
    optimizers: dict[str, torch.optim.AdamW]
    """One optimizer a phase."""
    averages: dict[str, Tensor] = field(default_factory=dict)
    """Moving averages of the weights by name; empty without one."""
    step: int = 0
    """Optimizer steps done."""

    @property
    def progress(self) -> Progress:
        return progress_at(self.config, self.step)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """The numbers of one step, still on the device."""

    loss: Tensor
    """Scalar, mean over the micro-batches of this rank."""
    per_sample_B: Tensor
    """[L] float, the loss of each of the rank's samples."""
    grad_norm: Tensor
    """Scalar, the norm of the gradient over all ranks, before clipping; not finite when the update was left out."""
    parts: dict[str, Tensor]


def train_step(state: TrainState, images_u8: Tensor) -> StepResult:
    """Do one optimizer step on this rank's uint8[L, 3, H, W] images and advance `state.step`.

    1. Let the method set what depends on the progress of the run.
    2. Forward, backward and update of each phase that runs in this step.
    3. Move the teacher, if the method has one, and the average of the weights, if the run keeps one.
    """
    config, method, progress = state.config, state.method, state.progress
    # Torch's own generator draws stochastic depth alone; seeded by step and rank, a resumed run repeats it.
    step_randomness = StepRandomness(seed=config.seed, step=state.step)
    torch.manual_seed(step_randomness.key(f"torch rank {state.context.rank}") >> 1)
    method.begin_step(progress)
    images = normalise(images_u8.to(state.device, non_blocking=True), config)
    results = [_phase_step(state, phase, images) for phase in method.active_phases(progress)]
    method.end_step(progress)
    if state.averages:
        weights = dict(method.named_parameters())
        with torch.no_grad():
            torch._foreach_lerp_(
                list(state.averages.values()),
                [weights[name].detach() for name in state.averages],
                1 - config.ema_decay,
            )
    state.step += 1
    parts = {name: value for result in results for name, value in result.parts.items()}
    for phase, result in zip(method.phases[1:], results[1:], strict=False):
        parts |= {f"loss_{phase}": result.loss, f"grad_norm_{phase}": result.grad_norm}
    return StepResult(
        loss=results[0].loss,
        per_sample_B=results[0].per_sample_B,
        grad_norm=torch.stack([result.grad_norm for result in results]).max(),  # NaN wins: one bad phase is seen
        parts=parts,
    )


def _phase_step(state: TrainState, phase: str, images: Tensor) -> StepResult:
    """Do forward, backward and update of one phase, micro-batch by micro-batch."""
    config, optimizer = state.config, state.optimizers[phase]
    alternates = len(state.method.phases) > 1
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    pieces = images.chunk(config.accumulation_steps)
    # The rank's first row in the global batch: a row draws the same numbers on any number of ranks.
    rank_row = state.context.rank * (config.global_batch // state.context.world_size)
    losses: list[Losses] = []
    for number, piece in enumerate(pieces):
        # DDP exchanges gradients in every backward pass; only the last micro-batch needs it.
        accumulates = isinstance(state.model, DistributedDataParallel) and number < len(pieces) - 1
        with state.model.no_sync() if accumulates else nullcontext(), autocast(state.device, config.precision):  # type: ignore[operator]
            first_row = rank_row + number * len(piece)
            randomness = StepRandomness(seed=config.seed, step=state.step, first_row=first_row)
            loss: Losses = state.model(piece, randomness, phase)
        # With alternating phases the frozen network must keep no gradient: AdamW would move it by its momentum.
        torch.autograd.backward(loss.total / len(pieces), inputs=parameters if alternates else None)
        losses.append(loss._replace(total=loss.total.detach()))  # release the graph before the next micro-batch
    if alternates:
        state.context.average_gradients(parameters)
    norm = gradient_norm(parameters)
    if config.clip_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, config.clip_norm, norm)
    set_learning_rate(optimizer, learning_rate(config, state.step))
    optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]  # fused AdamW leaves the update out on the device
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return StepResult(
        loss=torch.stack([loss.total for loss in losses]).mean(),
        per_sample_B=torch.cat([loss.per_sample_B for loss in losses]),
        grad_norm=norm,
        parts={name: torch.stack([loss.parts[name] for loss in losses]).mean() for name in losses[0].parts},
    )


@functools.cache
def _channels(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return values in [0, 1] by channel in units of bytes, [3, 1, 1]."""
    # Cached: a copy to the device in every step would wait for it.
    return torch.tensor(values, dtype=dtype, device=device).view(3, 1, 1) * 255


def normalise(images_u8: Tensor, config: TrainConfig) -> Tensor:
    """Return (x / 255 - mean) / std by channel, float32 or float64 as the run's precision, of uint8[B, 3, H, W].

    Computed on the device of the bytes: they cross to it at a quarter of the size.
    """
    dtype = torch.float64 if config.precision == "float64" else torch.float32
    mean, std = (_channels(values, dtype, images_u8.device) for values in (config.mean, config.std))
    return images_u8.to(dtype).sub_(mean).div_(std)
