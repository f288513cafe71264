"""One optimizer step: uint8 images in, updated weights out.

For each phase of the method: forward and backward on every micro-batch, gradients averaged over the ranks, one AdamW
update. The device is never waited for: a non-finite gradient stops the update on the device itself, and the caller
finds it when it next reads numbers.
"""

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
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
    """What a step changes, and what it needs."""

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
        """Where the run is."""
        return progress_at(self.config, self.step)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """What one step gave, still on the device."""

    loss: Tensor
    """Scalar, mean over the micro-batches of this rank."""
    per_sample_B: Tensor
    """[L] float, the loss of each of the rank's samples."""
    grad_norm: Tensor
    """Scalar, the norm of the gradient over all ranks, before clipping; not finite when the update was left out."""
    parts: dict[str, Tensor]
    """Scalars for the log by name."""


def train_step(state: TrainState, images_u8: Tensor) -> StepResult:
    """Do one optimizer step on this rank's uint8[L, 3, H, W] images and advance `state.step`."""
    config, method, progress = state.config, state.method, state.progress
    torch.manual_seed(_randomness(state, 0).torch_seed(state.context.rank))
    method.begin_step(progress)
    images = normalise(images_u8.to(state.device, non_blocking=True), config)
    results = [_phase_step(state, phase, images) for phase in method.active_phases(progress)]
    method.end_step(progress)
    _update_averages(state)
    state.step += 1
    parts = {name: value for result in results for name, value in result.parts.items()}
    for phase, result in zip(method.phases[1:], results[1:], strict=False):
        parts |= {f"loss_{phase}": result.loss, f"grad_norm_{phase}": result.grad_norm}
    return StepResult(
        loss=results[0].loss,
        per_sample_B=results[0].per_sample_B,
        grad_norm=_worst([r.grad_norm for r in results]),
        parts=parts,
    )


def _phase_step(state: TrainState, phase: str, images: Tensor) -> StepResult:
    """Forward, backward and update of one phase."""
    config, optimizer = state.config, state.optimizers[phase]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    pieces = images.chunk(config.accumulation_steps)
    losses: list[Losses] = []
    for number, piece in enumerate(pieces):
        with _no_sync(state, last=number == len(pieces) - 1), autocast(state.device, config.precision):
            loss = state.model(piece, _randomness(state, number * len(piece)), phase)
        torch.autograd.backward(loss.total / len(pieces), inputs=parameters if len(state.method.phases) > 1 else None)
        losses.append(_detached(loss))
    if len(state.method.phases) > 1:
        state.context.average_gradients(parameters)
    norm = gradient_norm(parameters)
    if config.clip_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, config.clip_norm, norm)
    set_learning_rate(optimizer, learning_rate(config, state.step))
    optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]  # fused AdamW leaves the update out on the device
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    mean = {name: torch.stack([loss.parts[name] for loss in losses]).mean() for name in losses[0].parts}
    total = torch.stack([loss.total for loss in losses]).mean()
    return StepResult(
        loss=total, per_sample_B=torch.cat([loss.per_sample_B for loss in losses]), grad_norm=norm, parts=mean
    )


@functools.cache
def _channels(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return values in [0, 1] by channel in units of bytes, [3, 1, 1]; made once for all steps."""
    return torch.tensor(values, dtype=dtype, device=device).view(3, 1, 1) * 255


def normalise(images_u8: Tensor, config: TrainConfig) -> Tensor:
    """Return float images with zero mean and unit variance by channel, on the device of the bytes."""
    dtype = torch.float64 if config.precision == "float64" else torch.float32
    mean, std = (_channels(values, dtype, images_u8.device) for values in (config.mean, config.std))
    return images_u8.to(dtype).sub_(mean).div_(std)


def _randomness(state: TrainState, row: int) -> StepRandomness:
    """Return the randomness of this rank's row `row` in this step."""
    first = state.context.rank * (state.config.global_batch // state.context.world_size)
    return StepRandomness(seed=state.config.seed, step=state.step, first_row=first + row)


def _no_sync(state: TrainState, *, last: bool) -> AbstractContextManager[None]:
    """Exchange gradients over the ranks in the last micro-batch only."""
    if isinstance(state.model, DistributedDataParallel) and not last:
        return state.model.no_sync()
    return nullcontext()


def _detached(losses: Losses) -> Losses:
    """Keep the numbers of a micro-batch and let its graph go."""
    return losses._replace(total=losses.total.detach())


def _worst(norms: Sequence[Tensor]) -> Tensor:
    """Return the largest norm; NaN wins, so that one bad phase is seen."""
    return torch.stack(list(norms)).max()


@torch.no_grad()
def _update_averages(state: TrainState) -> None:
    """Move the averages of the weights towards the weights."""
    if state.averages:
        weights = dict(state.method.named_parameters())
        names = list(state.averages)
        torch._foreach_lerp_(
            [state.averages[n] for n in names], [weights[n].detach() for n in names], 1 - state.config.ema_decay
        )
